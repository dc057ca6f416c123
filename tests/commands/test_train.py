"""`mplus train`: options, messages, exit codes, and what reaches stdout."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mplus_cli.training.recipe_files import shipped_recipes
from tests.training.runs import save_recipe, start


def test_list_names_stages_and_shipped_recipes(mplus):
    code, out, err = mplus("train", "--list")
    assert (code, err) == (0, "")
    assert all(name in out for name in shipped_recipes())
    code, out, _ = mplus("train", "--list", "--json")
    assert set(json.loads(out)["stages"]) == {"base", "1", "2", "3"}


def test_print_config_is_a_recipe_that_gives_itself(mplus, tmp_path):
    code, out, err = mplus("train", "--stage", "1", "optimizer.lr=1e-3", "--print-config")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["optimizer"]["lr"] == 1e-3
    (tmp_path / "again.yaml").write_text(out)
    assert mplus("train", "--config", tmp_path / "again.yaml", "--print-config")[1] == out
    assert json.loads(mplus("train", "--stage", "2", "--print-config", "--json")[1])["stage"] == 2


@pytest.mark.parametrize("arguments", [["--help"], ["--list"], ["--stage", "3", "--print-config"]])
def test_looking_is_quick_and_needs_no_torch(arguments):
    script = (
        "import sys; from mplus_cli import cli\n"
        f"try: cli.main(['train', *{arguments!r}])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_mistakes_in_a_recipe_at_once(mplus):
    code, out, err = mplus("train", "--stage", "1", "optimiser.lr=1", "data.batchsize=2", "steps=-1", "memory.lora.r=x")
    assert (code, out) == (2, "")
    for part in ("optimizer", "batch_size", "steps: must be at least 1", "memory.lora.r"):
        assert part in err
    assert err.count("error:") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "4"], "no such stage"),
        ([], "Neither a stage, a recipe nor a run is given"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--resume", "nowhere"], "not the folder of a training run"),
        (["--stage", "1", "--hostfile", "nowhere"], "hostfile nowhere cannot be read"),
        (["--stage", "1", "lr"], "is not an override"),
    ],
)
def test_bad_input_is_one_message(mplus, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = mplus("train", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not any(tmp_path.rglob("log.jsonl"))


def test_a_dry_run_says_what_it_takes_and_writes_nothing(mplus, tmp_path):
    recipe = save_recipe(tmp_path, 3, steps=50)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = mplus("train", "--config", recipe, "--dry-run", "--gpus", "2", "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    for part in ("write_adapter", "retriever", "frozen", "50 of 4 documents on 2 processes", "optimizer", "assuming"):
        assert part in out
    assert sorted(tmp_path.rglob("*")) == before
    figures = json.loads(mplus("train", "--config", recipe, "--dry-run", "--json")[1])
    assert figures["parameters"] == sum(figures["groups"].values())
    assert set(figures["trained"]) == {
        "write_adapter",
        "read_adapter",
        "bos_embedding",
        "new_memory_positional_emb",
        "retriever",
    }
    assert figures["memory_total"] > figures["parameters"] * 4


def test_a_dry_run_without_the_training_text_says_so(mplus, tmp_path):
    code, out, err = mplus("train", "--config", save_recipe(tmp_path), "--dry-run", "data.sources=[nowhere]")
    assert code == 0, err
    assert "nowhere" in err
    assert "assumed" in out


def test_from_training_to_an_answer(mplus, tmp_path, book_file):
    recipe, run = save_recipe(tmp_path, 3, steps=2), tmp_path / "run"
    code, out, err = mplus("train", "--config", recipe, "--out", run)
    assert code == 0, err
    assert f"model   {run / 'model'}" in out
    assert "DeepSpeed" not in out + err
    state = tmp_path / "memory.pt"
    assert mplus("inject", book_file, "--state", state, "--model", run / "model")[0] == 0
    code, out, err = mplus("ask", "Who sold flour?", "--state", state)
    assert code == 0, err

    code, out, err = mplus("train", "--config", recipe, "--out", run)
    assert (code, out) == (2, "")
    assert "never overwrites" in err
    assert f"mplus train --resume {run}" in err
    code, out, err = mplus("train", "--config", recipe, "--out", run, "--resume", "auto", "--json", "steps=3")
    assert code == 0, err
    assert json.loads(out)["steps"] == 3


def test_ctrl_c_saves_and_exits_130(tmp_path):
    recipe, run = save_recipe(tmp_path, steps=100_000, checkpoint__every=50_000), tmp_path / "run"
    process = start("--config", recipe, "--out", run)
    wait_for_steps(process, run, 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "which is saved in" in err
    assert len(list((run / "checkpoints").glob("step-*/checkpoint.json"))) == 1


def wait_for_steps(process: subprocess.Popen, run: Path, steps: int, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not (run / "log.jsonl").exists() or len((run / "log.jsonl").read_text().splitlines()) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
