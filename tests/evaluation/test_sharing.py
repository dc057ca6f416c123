"""Samples shared out over processes: the result is that of one process, and nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys

import pytest

from mplus_cli.evaluation import predictions
from mplus_cli.evaluation.request import Request, make_plan
from mplus_cli.evaluation.runner import Share
from mplus_cli.evaluation.runner import evaluate as evaluate_share
from mplus_cli.evaluation.runs import Pair
from mplus_cli.evaluation.sharing import _failure, main
from tests.evaluation.helpers import answers, evaluate

needs_launcher = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


def share(out, model, rank, count, systems=("echo",), resume=False):
    request = Request(out=out, tasks=("parrot",), systems=systems, model=str(model), batch=1, limit=5, resume=resume)
    out.mkdir(exist_ok=True)
    evaluate_share(request, make_plan(request), lambda *seen: None, (), Share(rank, count))


def test_shares_are_disjoint_and_together_are_everything(tmp_path, toys, model_folder):
    (whole,) = evaluate(tmp_path / "whole", model_folder, limit=5)
    toys.batches.clear()
    for rank in range(3):
        share(tmp_path / "out", model_folder, rank, 3)
    assert [batch for (batch,) in toys.batches] == ["item-0", "item-3", "item-1", "item-4", "item-2"]
    pair = Pair(tmp_path / "out" / "parrot" / "echo")
    assert [path.name for path in predictions.files(pair.path)] == [f"predictions.{rank}.jsonl" for rank in range(3)]
    merged, damaged = predictions.merge(pair.path, pair.samples())
    assert damaged == [] and list(merged) == whole.samples()
    assert answers(pair) == answers(whole)
    assert len(pair.run()["sessions"]) == 1, "the first process alone begins"


def test_a_run_of_three_goes_on_as_two_and_as_one(tmp_path, toys, model_folder):
    (whole,) = evaluate(tmp_path / "whole", model_folder, limit=5)
    out, pair = tmp_path / "out", Pair(tmp_path / "out" / "parrot" / "echo")
    share(out, model_folder, 0, 3)
    toys.batches.clear()
    predictions.merge(pair.path, pair.samples())
    share(out, model_folder, 0, 2)
    predictions.merge(pair.path, pair.samples())
    share(out, model_folder, 0, 1)
    asked = [item for (item,) in toys.batches]
    assert sorted(asked) == ["item-1", "item-2", "item-4"], "nothing is asked twice"
    assert answers(pair) == answers(whole)


def test_the_first_expected_failure_is_reported(tmp_path):
    (tmp_path / "failure-00000.json").write_text(
        json.dumps({"message": "lost", "hint": None, "exit_code": 1, "expected": False})
    )
    (tmp_path / "failure-00001.json").write_text(
        json.dumps({"message": "no data", "hint": "build it", "exit_code": 2, "expected": True})
    )
    failure = _failure(tmp_path, 1, tmp_path / "output.log")
    assert (failure.message, failure.hint, failure.exit_code) == ("no data", "build it", 2)
    assert _failure(tmp_path / "none", 0, tmp_path) is None
    assert "ended with code 9" in _failure(tmp_path / "none", 9, tmp_path).message


@needs_launcher
def test_two_processes_give_what_one_gives(tmp_path, model_folder):
    """The launcher, real tasks and systems, the tiny model."""
    settings = {
        "tasks": ("chronicle:questions=1,times=1,distances=[0,2]",),
        "systems": ("mplus", "closed-book"),
        "limit": 3,
        "batch": 1,
    }
    alone = evaluate(tmp_path / "alone", model_folder, **settings)
    shared = evaluate(tmp_path / "shared", model_folder, processes=2, **settings)
    for one, other in zip(alone, shared, strict=True):
        assert answers(one) == answers(other) and len(answers(one)) == len(one.samples())
        assert other.run()["sessions"][0]["processes"] == 2
        assert [path.name for path in predictions.files(other.path)] == [predictions.NAME]
    assert not (tmp_path / "shared" / ".processes").exists()


def test_a_process_leaves_word_of_bad_input(tmp_path, model_folder, monkeypatch):
    out, folder = tmp_path / "out", tmp_path / "out" / ".processes"
    folder.mkdir(parents=True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    Request(out=out, tasks=("chronicle",), systems=("mplus",), model=str(tmp_path / "gone")).save(folder)
    (folder / "command.json").write_text('{"command": []}')
    arguments = [str(folder), "--token", "x", "--launcher", str(os.getpid()), socket.gethostname()]
    assert main(arguments) == 2
    failure = _failure(folder, 2, out / "output.log")
    assert "gone" in failure.message and failure.exit_code == 2


def test_a_process_does_not_outlive_the_command_that_launched_it(tmp_path, toys, model_folder, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder = tmp_path / "out" / ".processes"
    folder.mkdir(parents=True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    Request(out=tmp_path / "out", tasks=("parrot",), systems=("echo",), model=str(model_folder), batch=1).save(folder)
    (folder / "command.json").write_text('{"command": []}')
    assert main([str(folder), "--token", "x", "--launcher", str(gone.pid), socket.gethostname()]) == 130
    assert toys.batches == [["item-0"]], "it stops at the first sample"
