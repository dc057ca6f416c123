"""`mplus eval` as a user types it: tables on stdout, everything else on stderr, exit codes, files."""

from __future__ import annotations

import json
import signal
import sys
import time

import pytest

from tests.commands.helpers import CommandLine, process
from tests.evaluation.helpers import Echo

TASK = "chronicle:questions=1,distances=[0,2,5]"


@pytest.fixture
def mplus(capsys, toys) -> CommandLine:
    return CommandLine(capsys)


def test_list_names_everything(mplus):
    code, out, _ = mplus("eval", "list")
    assert code == 0
    for name in ("retention", "needle", "babilong", "parrot", "mplus-attn", "closed-book", "echo"):
        assert f"\n  {name} " in out
    found = json.loads(mplus("eval", "list", "--json")[1])
    assert found["systems"]["window"]["paper"] == "Llama-3.1-8B-16k"


def test_show_says_settings_and_defaults(mplus):
    code, out, _ = mplus("eval", "show", "parrot")
    assert code == 0 and "parrot: the parrot task" in out and "words" in out and "8" in out
    assert json.loads(mplus("--json", "eval", "show", "echo")[1])["settings"] == {"right": 0.5, "offload": False}
    code, out, err = mplus("eval", "show", "parott")
    assert (code, out) == (2, "") and "did you mean parrot?" in err


def test_evaluate_score_compare_plot(mplus, tmp_path, model_folder):
    run = tmp_path / "run"
    systems = ("--system", "echo:right=0.1", "--system", "echo:right=1")
    code, out, err = mplus(
        "eval", "parrot", *systems, "--limit", 4, "--model", model_folder, "--out", run, "--seed", 2, "--set", "words=5"
    )
    assert (code, err) == (0, f"{run / 'results.md'}, 1 plot beside it\n")
    lines = out.splitlines()
    assert lines[0] == "parrot: mean [95% interval]"
    assert lines[1].split() == ["system", "exact", "length", "samples", "items", "samples/s", "peak", "memory"]
    assert lines[3].startswith("echo:right=1") and "1.000 [0.398, 1.000]" in lines[3]
    assert "exact by distance" in lines and "exact by kind" in lines

    (run / "results.md").unlink()
    results = run / "parrot" / "echo-right=1" / "results.json"
    before = results.read_bytes()
    results.unlink()
    code, again, _ = mplus("eval", "score", run)
    assert (code, again) == (0, out) and results.read_bytes() == before

    code, out, err = mplus("eval", "compare", run, "--json")
    (found,) = json.loads(out)
    assert code == 0 and found["task"] == "parrot" and found["runs"][1]["difference"]["low"] > 0
    assert mplus("eval", "compare", run, "--against", "echo:right=1")[1].count("\n") == 4

    code, out, _ = mplus("eval", "plot", run, "--out", tmp_path / "plots")
    assert (code, out) == (0, f"{tmp_path / 'plots' / 'parrot' / 'parrot.png'}\n")
    assert (tmp_path / "plots" / "parrot" / "parrot.png").stat().st_size > 5_000


def test_json_is_one_document(mplus, tmp_path, model_folder):
    code, out, err = mplus(
        "--json", "eval", "--limit", 2, "parrot", "-s", "echo", "-m", model_folder, "-o", tmp_path / "o"
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["results"][0]["scores"]["exact"]["n"] == 6 and found["report"] == str(tmp_path / "o" / "results.md")


def test_interrupted_and_resumed_with_one_flag(mplus, tmp_path, model_folder, monkeypatch):
    asked: list[str] = []

    def interrupt(question):
        asked.append(question.id)
        if len(asked) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Echo, "interrupt", staticmethod(interrupt))
    out = tmp_path / "out"
    code, shown, err = mplus("eval", "parrot", "-s", "echo", "-m", model_folder, "-o", out, "--batch", 1)
    assert (code, shown) == (130, "")
    assert err == (f"error: interrupted; 4 of 9 samples are finished and kept\nhint: mplus eval --resume --out {out}\n")
    code, shown, err = mplus("eval", "--resume", "--out", out, "--batch", 3)
    assert code == 0 and len(asked) == 5 + 5
    assert shown.splitlines()[2].split()[-5:-3] == ["9", "3"] or "  9  " in shown
    code, _, err = mplus("eval", "--resume", "--out", out, "--limit", 5, "--system", "mplus")
    assert code == 2 and "--system, --limit without a task" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parot"], "error: there is no task 'parot' (did you mean parrot?)\nhint: mplus eval list\n"),
        (["parrot", "-s", "memorylm"], "there is no system 'memorylm' (did you mean memoryllm"),
        (["parrot", "--length", "many"], "--length many: not a number of tokens\nhint: for example --length 4096"),
        (["parrot", "--resume", "--gpus", "0"], "Usage"),
        (["--resume"], "holds no evaluation to go on with"),
        (["score", "gone"], "gone is no folder"),
        (["compare", "gone"], "gone is no folder"),
        (["parrot", "--offload", "-s", "closed-book"], "--offload means nothing to these systems"),
    ],
)
def test_bad_input_is_one_message_and_no_folder(mplus, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = mplus("eval", *arguments)
    assert (code, out) == (2, "") and message in err
    assert [path for path in tmp_path.iterdir() if path.name != "home"] == []


def test_lengths_are_counts_of_tokens():
    from mplus_cli.commands.eval_options import tokens

    assert [tokens(text) for text in (None, "4096", "16k", "1K")] == [None, 4096, 16384, 1024]


def test_ctrl_c_ends_a_real_run_and_resuming_gives_the_same(mplus, tmp_path, model_folder):
    """The real thing, on the tiny model: a process is interrupted, another killed, this one finishes."""
    common = ["eval", TASK, "-s", "mplus", "-n", "6", "-m", model_folder, "--batch", "1"]
    out = tmp_path / "out"
    for number in (signal.SIGINT, signal.SIGKILL):
        running = process([*common, "--resume", "--out", out, "--quiet"])
        before = _lines(out)
        end = time.monotonic() + 120
        while _lines(out) < before + 3 and running.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        running.send_signal(number)
        _, err = running.communicate(timeout=120)
        if number == signal.SIGINT:
            assert running.returncode == 130, err
            assert f"hint: mplus eval --resume --out {out}" in err
    assert mplus("eval", "--resume", "--out", out, "--batch", 3)[0] == 0
    assert mplus(*common, "--out", tmp_path / "whole")[0] == 0
    first, second = (json.loads(_results(folder).read_text()) for folder in (out, tmp_path / "whole"))
    assert first["scores"] == second["scores"] and first["groups"] == second["groups"]
    assert len(first["sessions"]) == 3


def _folder(out):
    return out / "chronicle-questions=1,distances=_0,2,5_" / "mplus"


def _lines(out) -> int:
    path = _folder(out) / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _results(out):
    return _folder(out) / "results.json"


def test_run_is_the_same_command(mplus, tmp_path, model_folder):
    code, out, _ = mplus("eval", "run", "parrot", "-s", "echo", "-n", 1, "-m", model_folder, "-o", tmp_path / "out")
    assert code == 0 and out.startswith("parrot: mean")
    run = json.loads((tmp_path / "out" / "parrot" / "echo" / "run.json").read_text())
    assert run["sessions"][0]["command"][0] == "mplus" and sys.argv[1:] == run["sessions"][0]["command"][1:]
