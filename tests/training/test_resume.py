"""N steps equal N/2, a kill -9, and the rest: loss for loss and weight for weight. With real DeepSpeed processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mplus_cli.errors import CheckpointError
from mplus_cli.training.resuming import Request
from tests.training.runs import losses, save_recipe, start, train_here


def kill_after(process, run: Path, step: int, seconds: float = 90.0) -> None:
    """SIGKILL the command and, if it has any, the session of its launched processes, once a checkpoint is there."""
    end = time.monotonic() + seconds
    while not (run / f"checkpoints/step-{step:08d}").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no checkpoint came"
        time.sleep(0.01)
    for pid in [process.pid, *children(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def assert_same_result(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    first, second = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("stage", [1, 3])
def test_one_process_killed_and_resumed_is_one_process_never_killed(tmp_path, stage):
    changes = {"steps": 8, "checkpoint__every": 4, "tasks__revisit": 0.5}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_here(Request(recipe=save_recipe(tmp_path, stage, **changes), out=whole)).complete
    # More steps than there is time for, so that the kill comes in the middle of one.
    longer = save_recipe(tmp_path, stage, "longer", **changes | {"steps": 100_000})
    kill_after(start("--config", longer, "--out", broken), broken, 4)
    assert train_here(Request(resume=str(broken), overrides=("steps=8",))).complete
    assert_same_result(whole, broken)


def test_two_processes_killed_and_resumed_are_two_processes_never_killed(tmp_path):
    changes = {"steps": 8, "checkpoint__every": 4, "precision": "bfloat16"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    never_killed = start("--config", save_recipe(tmp_path, 1, **changes), "--out", whole, "--gpus", 2)
    longer = save_recipe(tmp_path, 1, "longer", **changes | {"steps": 100_000})
    kill_after(start("--config", longer, "--out", broken, "--gpus", 2), broken, 4)
    code, (_, err) = never_killed.wait(), never_killed.communicate()
    assert code == 0, err
    with pytest.raises(CheckpointError, match="was written by 2 processes, not 1: each has memories"):
        train_here(Request(resume=str(broken), overrides=("steps=8",)), gpus=1)
    assert train_here(Request(resume=str(broken), overrides=("steps=8",))).complete, "as many processes as wrote it"
    assert_same_result(whole, broken)
