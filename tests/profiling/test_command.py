"""`mplus profile` from the outside: exit codes, standard output, files, interruption, out of memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.commands.helpers import CommandLine, process
from tests.profiling.helpers import TEXT, config_folder

QUICK = ("--repeats", 1, "--writes", 2, "--new-tokens", 2, "--prompt", 50)


@pytest.fixture
def mplus(capsys) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def model(tmp_path):
    return config_folder(tmp_path / "model")


def cells(folder):
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]


def test_a_whole_profile_and_going_on_with_it(mplus, model, tmp_path):
    out = tmp_path / "out"
    asked = ("--random-weights", model, "--system", "mplus", "--system", "full", *QUICK)
    code, text, err = mplus("profile", *asked, "--len", "2k", "--out", out, "--breakdown", "--compare-paper")
    assert code == 0, err
    assert [line.split()[:2] for line in text.splitlines()[2:4]] == [["mplus", "2k"], ["full", "2k"]]
    assert "retrieval scoring" in text and "21,178" in text
    assert "machine: " in err
    names = {path.name for path in out.iterdir()}
    assert {"results.md", "results.csv", "results.json", "memory.png", "latency.png", "cells.jsonl"} <= names
    assert len(list((out / "traces").iterdir())) == 2
    first = (out / "cells.jsonl").read_text()

    code, _, err = mplus("profile", *asked, "--out", out)
    assert code == 2 and "not overwritten" in err

    code, text, err = mplus("profile", "--resume", "--out", out, "--len", "1000", "--system", "mplus", "--json")
    assert code == 0, err
    assert (out / "cells.jsonl").read_text().startswith(first)  # nothing is measured again or changed
    found = json.loads(text)
    keys = {(one["system"], one["length"]) for one in found["cells"]}
    assert keys == {(system, length) for system in ("mplus", "full") for length in (1000, 2048)}
    assert all(one["status"] == "ok" and one["peak_bytes"] > 0 for one in found["cells"])
    assert found["machine"]["processor"]


def test_adapters_merged_or_separate(mplus, model, tmp_path):
    shown = {}
    for how in ("merged", "separate"):
        asked = ("--random-weights", model, "--system", "memoryllm", "--len", "500", "--adapters", how, *QUICK)
        code, text, _ = mplus("profile", *asked, "--out", tmp_path / how)
        assert code == 0 and f"adapters {how}" in text
        (shown[how],) = cells(tmp_path / how)
    assert shown["merged"]["adapters"] == "merged"
    assert shown["separate"]["flops"]["write"] > shown["merged"]["flops"]["write"]


def test_a_checkpoint_and_a_configuration_without_weights(mplus, model, model_folder, tmp_path):
    code, text, _ = mplus(
        "profile", "--model", model_folder, "--len", "400", "--system", "mplus", *QUICK, "-o", tmp_path / "o"
    )
    assert code == 0 and "mplus" in text
    code, _, err = mplus("profile", "--model", model)
    assert code == 2 and "configuration and no weights" in err and f"--random-weights {model}" in err


def test_a_quantized_backbone(mplus, tmp_path):
    pytest.importorskip("bitsandbytes")
    asked = ("--random-weights", "1m", "--len", "500", "--quantize", "int8", *QUICK, "--out", tmp_path / "int8")
    code, text, _ = mplus("profile", *asked, "--adapters", "separate")
    assert code == 0 and "float32, backbone in int8" in text and "window" not in text
    found = {one["system"]: one for one in cells(tmp_path / "int8")}
    assert set(found) == {"mplus", "memoryllm"} and all(one["status"] == "ok" for one in found.values())
    assert found["mplus"]["flops"]["write"] > 1e6
    sizes = []
    for more in ((), ("--quantize", "int4")):
        code, text, _ = mplus(
            "profile",
            "--estimate",
            "--random-weights",
            "llama-3.1-8b",
            "--gpu",
            "RTX 3090",
            "--json",
            "--system",
            "mplus",
            "--offload",
            "--len",
            "128k",
            *more,
        )
        assert code == 0
        sizes.append(json.loads(text)["cells"][0]["estimate"]["peak_bytes"])
    assert sizes[1] < 12e9 < sizes[0]  # the card of 12 GB that 4 bits are for


def test_an_estimate_runs_and_writes_nothing(mplus, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, text, _ = mplus("profile", "--estimate", "--random-weights", model, "--len", "2k,128k", "--json")
    assert code == 0
    found = json.loads(text)
    assert {one["system"] for one in found["cells"]} >= {"mplus", "memoryllm", "window", "full"}
    assert any("positions" in (one["obstacle"] or "") for one in found["cells"])
    code, text, _ = mplus("profile", "--estimate", "--random-weights", "llama-3.1-8b", "--gpu", "H100", "--len", "128k")
    assert code == 0 and "data sheet of H100" in text and "retrieval keys" in text
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--system", "mpluss"), "did you mean mplus?"),
        (("--system", "mplus:ofload=1"), "did you mean 'offload'?"),
        (("--len", "2x"), "not a number of tokens"),
        (("--random-weights", "llama-3.1-9b"), "did you mean llama-3.1-8b"),
        (("--random-weights", "1m", "--model", "x"), "give one"),
        (("--random-weights", "1m", "--adapters", "both"), "neither merged nor separate"),
        (("--random-weights", "1m", "--adapters", "merged", "--dtype", "bfloat16"), "rounded"),
        (("--random-weights", "1m", "--dtype", "int3"), "unknown --dtype"),
        (("--random-weights", "1m", "--gpu", "H100"), "--estimate"),
        (("--random-weights", "1m", "--estimate", "--gpu", "H1000"), "did you mean H100"),
        (("--model", "nowhere/at-all"), "No model at"),
        (("--random-weights", "1m", "--quantize", "int3"), "unknown --quantize"),
        (("--random-weights", "1m", "--quantize", "int8", "--system", "full"), "run the plain backbone"),
        (("--random-weights", "1m", "--quantize", "int8", "--adapters", "merged"), "not merged into codes"),
        (("--resume",), "no profile to go on with"),
    ],
)
def test_bad_input(mplus, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, text, err = mplus("profile", *arguments)
    assert (code, text) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) <= 3
    assert not (tmp_path / "profile-results").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_no_cuda(mplus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = mplus("profile", "--random-weights", "1m", "--device", "cuda")
    assert code == 2 and "CUDA" in err and "--device cpu" in err


def test_too_long_for_the_model(mplus, tmp_path):
    out, model = (
        tmp_path / "out",
        config_folder(tmp_path / "model", text_config=TEXT | {"max_position_embeddings": 800}),
    )
    asked = ("profile", "--random-weights", model, "--len", "900", "--out", out, *QUICK)
    code, text, err = mplus(*asked, "--system", "full", "--system", "mplus")
    assert (code, text) == (2, "")
    assert err.index("estimated memory by purpose") < err.index("800 positions") < err.index("--yes")
    assert not out.exists()
    code, text, err = mplus(*asked)  # nothing was named: what can be run is run, the rest is said
    assert code == 0 and "full at 900: 900 tokens at once are more than the model's 800 positions" in err
    assert {one["system"] for one in cells(out)} == {"mplus", "memoryllm", "window"}
    code, _, err = mplus("profile", "--resume", "--out", out, "--yes", "--quiet")
    assert code == 0, err
    assert {one["system"]: one["status"] for one in cells(out)}["full"] == "ok"


def test_too_large_for_the_machine(mplus, tmp_path):
    asked = ("--random-weights", "llama-3.1-8b", "--dtype", "float32", "--system", "full", "--len", "120k")
    code, _, err = mplus("profile", *asked, "--out", tmp_path / "out")
    assert code == 2 and "of main memory that are free" in err and "weights" in err


def test_out_of_memory_in_one_cell(model, tmp_path):
    """Under a limit on the address space, one system is too large; the other is measured all the same."""
    limit = 12 << 30

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    arguments = ["profile", "--random-weights", model, "--len", "300", "--out", tmp_path / "out", *QUICK, "--yes"]
    arguments += ["--system", "memoryllm:short_term_size=20000000", "--system", "memoryllm", "--json"]
    with process(arguments, preexec_fn=limited) as running:
        text, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    large, small = json.loads(text)["cells"]
    assert (large["status"], small["status"]) == ("oom", "ok")
    assert "out of memory" in err


def test_ctrl_c_keeps_what_is_measured(model, tmp_path):
    out = tmp_path / "out"
    arguments = ["profile", "--random-weights", model, "--len", "300,301,302,303,304,305", "--out", out, *QUICK]
    command = [sys.executable, "-m", "mplus_cli", *map(str, arguments), "--system", "memoryllm"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 240
    while not (out / "cells.jsonl").exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: every process of the command gets it
    _, err = running.communicate(timeout=60)
    kept = cells(out)
    assert running.returncode == 130, err
    assert 1 <= len(kept) < 6
    assert f"{len(kept)} of 6 cells are measured and kept" in err and f"mplus profile --resume --out {out}" in err
    assert "Traceback" not in err
