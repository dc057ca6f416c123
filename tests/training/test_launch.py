"""Several processes under DeepSpeed's launcher: stopping, failing and resuming without leaving anything behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from mplus_cli.errors import UsageError
from mplus_cli.training.checkpoints import find_checkpoints, read_record
from mplus_cli.training.launch import Launch, count_processes, launcher_command, read_hostfile
from mplus_cli.training.run_dir import RunDirectory
from tests.training.runs import losses, save_recipe, start

PATIENCE = 120.0  # seconds; the machine may be busy


def wait_until(condition, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.05)


def steps_done(run: Path) -> int:
    return len((run / "log.jsonl").read_text().splitlines()) if (run / "log.jsonl").exists() else 0


def descendants(process) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def newest(run: Path) -> int:
    return read_record(find_checkpoints(run / "checkpoints")[-1]).step


def test_ctrl_c_saves_and_leaves_no_process_and_so_does_a_killed_command(tmp_path):
    recipe, run = save_recipe(tmp_path, steps=100_000, checkpoint__every=50_000), tmp_path / "run"
    first = start("--config", recipe, "--out", run, "--gpus", 2)
    wait_until(lambda: steps_done(run) >= 2, "training")
    workers = descendants(first)
    assert len(workers) == 4, "the launcher, its part for this machine, and two workers"
    first.kill()  # nobody tells the workers
    first.communicate()
    wait_until(lambda: gone(workers), "the end of the workers")
    saved = newest(run)
    assert saved >= 2

    second = start("--resume", run, "--gpus", 2)
    wait_until(lambda: steps_done(run) >= saved + 2, "more training")
    workers = descendants(second)
    second.send_signal(signal.SIGINT)
    out, err = second.communicate(timeout=PATIENCE)
    assert second.returncode == 130, err
    assert out == ""
    assert f"interrupted after step {newest(run):,} of 100,000, which is saved" in err
    assert f"hint: mplus train --resume {run}" in err
    assert gone(workers)
    assert not (run / "stop").exists()
    assert max(losses(run)) == newest(run) > saved


def test_what_stops_a_launched_process_is_one_message(tmp_path):
    recipe = save_recipe(tmp_path, tasks__full_memory=1.0)
    process = start("--config", recipe, "--out", tmp_path / "run", "--gpus", 2)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "no gradient reaches write_adapter" in errors[0]
    assert "Traceback" not in err
    assert "Traceback" in (tmp_path / "run" / "output.log").read_text()


FAKE_SSH = """#!/bin/sh
# The machine's own name, as `ssh HOST hostname [-I]` would give it.
echo 127.0.0.1
"""
FAKE_PDSH = f"""#!{sys.executable}
# Runs a command once per named machine, all of them here; %n is the machine's number.
import subprocess, sys
hosts = sys.argv[sys.argv.index("-w") + 1].split(",")
command = " ".join(sys.argv[sys.argv.index("-w") + 2 :])
parts = [subprocess.Popen(["sh", "-c", command.replace("%n", str(n))]) for n in range(len(hosts))]
sys.exit(max(part.wait() for part in parts))
"""


def test_several_machines_through_a_hostfile(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("ssh", FAKE_SSH), ("pdsh", FAKE_PDSH)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    hosts = tmp_path / "hosts"
    hosts.write_text("# two machines of one process each\\nalpha slots=1\\nbeta slots=1\\n".replace("\\n", "\n"))
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    recipe, run = save_recipe(tmp_path, steps=3), tmp_path / "run"
    process = start("--config", recipe, "--out", run, "--hostfile", hosts, "--json", PATH=path)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err + (run / "output.log").read_text()
    assert json.loads(out)["steps"] == 3
    assert read_record(find_checkpoints(run / "checkpoints")[-1]).processes == 2


def test_hostfiles(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# mine\n\nworker-1 slots=4\nworker-2  slots=8  # bigger\n")
    assert read_hostfile(path) == {"worker-1": 4, "worker-2": 8}
    assert count_processes(Launch(hostfile=path), None) == 12
    assert count_processes(Launch(gpus=2, hostfile=path), None) == 4
    for text, match in (
        ("", "names no machine"),
        ("a slots=x", "line 1"),
        ("a slots=0", "line 1"),
        ("a", "line 1"),
        ("a slots=1\na slots=2", "line 2"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=match):
            read_hostfile(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_hostfile(tmp_path / "nowhere")


def test_several_machines_need_pdsh(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "hosts"
    path.write_text("a slots=1\nb slots=1\n")
    with pytest.raises(UsageError, match="needs pdsh"):
        launcher_command(RunDirectory(tmp_path), None, Launch(hostfile=path), 2)
