"""Starting a run: in this process, or as several under DeepSpeed's own launcher, on one machine or many.

Launched processes live in a session of their own, so that Ctrl-C reaches only the command that launched them. It asks
them to stop through a file in the run's folder, waits until they have saved, and leaves none behind. They write what
they print to `output.log`; what the user sees is made from the journal.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplus_cli.errors import MPlusError, UsageError
from mplus_cli.training.checkpoints import check_processes, find_checkpoints, read_record
from mplus_cli.training.processes import accelerator_environment, free_port, import_deepspeed
from mplus_cli.training.run_dir import RunDirectory
from mplus_cli.training.stopping import StopRequest
from mplus_cli.training.worker import Show, Summary, train

GRACE_SECONDS = 5.0  # between asking a process to end and making it


@dataclass(frozen=True)
class Launch:
    """How to run.

    Attributes:
        gpus: processes on this machine, or on each machine of the hostfile; None: one, all slots of the hostfile, or as
            many as wrote the checkpoint that is resumed.
        hostfile: machines as DeepSpeed takes them, `NAME slots=N` per line.
        verbose: show everything that launched processes print.
    """

    gpus: int | None = None
    hostfile: Path | None = None
    verbose: bool = False


def preflight(launch: Launch) -> None:
    """Look at what can be wrong before a run's folder is made.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
        UsageError: an unusable hostfile, or more processes than GPUs.
    """
    import_deepspeed()
    count_processes(launch, None)


def run_training(run: RunDirectory, resume: Path | None, launch: Launch, show: Show) -> Summary:
    """Train until the recipe's last step or until asked to stop.

    Args:
        resume: checkpoint to go on from.
        show: given every line of the journal.

    Raises:
        MPlusError: what went wrong, in a launched process too.
    """
    world = count_processes(launch, resume)
    if resume is not None:
        check_processes(read_record(resume), resume, world)
    with run.locked():
        if world == 1 and launch.hostfile is None:
            return train(run, resume, StopRequest(), show)
        return _run_launcher(run, resume, launch, world, show)


def count_processes(launch: Launch, resume: Path | None) -> int:
    """Processes of a run on all machines.

    Raises:
        UsageError: an unusable hostfile, or more processes than GPUs.
    """
    if launch.hostfile is not None:
        slots = read_hostfile(launch.hostfile)
        return sum(slots.values()) if launch.gpus is None else launch.gpus * len(slots)
    if launch.gpus is None:
        return 1 if resume is None else read_record(resume).processes
    import torch

    there = torch.cuda.device_count()
    if there and launch.gpus > there and os.environ.get("DS_ACCELERATOR") != "cpu":
        raise UsageError(f"--gpus {launch.gpus}: this machine has {there}.", f"--gpus {there}")
    return launch.gpus


def read_hostfile(path: Path) -> dict[str, int]:
    """Machine -> processes, from lines `NAME slots=N`.

    Raises:
        UsageError: unreadable, empty, or with another kind of line.
    """
    slots: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The hostfile {path} cannot be read: {error}.") from error
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        count = words[1].removeprefix("slots=") if len(words) == 2 and words[1].startswith("slots=") else ""
        if not count.isdigit() or int(count) == 0 or words[0] in slots:
            raise UsageError(f"{path}, line {number}: {line.strip()!r} is not `NAME slots=N` of a new machine.")
        slots[words[0]] = int(count)
    if not slots:
        raise UsageError(f"The hostfile {path} names no machine.", "Write one `NAME slots=N` per line.")
    return slots


def launcher_command(run: RunDirectory, resume: Path | None, launch: Launch, world: int) -> list[str]:
    """The command line of DeepSpeed's launcher.

    Raises:
        UsageError: several machines without pdsh, with which DeepSpeed reaches them.
    """
    arguments = [str(run.path), *(["--resume", str(resume.absolute())] if resume is not None else [])]
    return module_command("mplus_cli.training.worker", arguments, launch, world)


def module_command(module: str, arguments: Sequence[str], launch: Launch, world: int) -> list[str]:
    """The command line with which DeepSpeed's launcher runs a module on every process.

    The module gets `arguments` and `--launcher PROCESS HOST`, the process that launches it.

    Raises:
        UsageError: several machines without pdsh, with which DeepSpeed reaches them.
    """
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--master_port", str(free_port())]
    if launch.hostfile is not None:
        if len(read_hostfile(launch.hostfile)) > 1 and shutil.which("pdsh") is None:
            raise UsageError("Running on several machines needs pdsh, with which DeepSpeed starts them.")
        command += ["--hostfile", str(launch.hostfile.absolute())]
        command += [] if launch.gpus is None else ["--num_gpus", str(launch.gpus)]
    else:
        command += ["--hostfile", os.devnull + "/none", "--num_gpus", str(world)]
    command += ["--no_local_rank", "--module", module, *arguments]
    return [*command, "--launcher", str(os.getpid()), socket.gethostname()]


def _run_launcher(run: RunDirectory, resume: Path | None, launch: Launch, world: int, show: Show) -> Summary:
    command = launcher_command(run, resume, launch, world)
    run.stop.unlink(missing_ok=True)
    run.summary.unlink(missing_ok=True)
    shutil.rmtree(run.failures, ignore_errors=True)
    lines = _Follower(run.log, 0 if resume is None else read_record(resume).step)
    with run.output.open("a", encoding="utf-8") as output, StopRequest() as stop:
        print(f"--- {' '.join(command)}", file=output, flush=True)
        target = sys.stderr if launch.verbose else output
        with session(command, launch_environment(world, launch), target) as process:
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    lines.show(show)
                    if stop() and not run.stop.exists():
                        run.stop.touch()
            finally:
                run.stop.unlink(missing_ok=True)
    lines.show(show)
    if not run.summary.exists():
        raise _failure(run, process.returncode)
    return Summary(**json.loads(run.summary.read_text(encoding="utf-8")))


@contextmanager
def session(command: list[str], environment: dict[str, str], output: Any) -> Iterator[subprocess.Popen]:
    """A process that leads a session; at the end nothing of the session is left, whatever happens here."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    try:
        yield process
    finally:
        for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
            if not _signal_session(process, number):
                break
            _wait_until(lambda: process.poll() is not None and not _signal_session(process, 0), patience)


def _signal_session(leader: subprocess.Popen, number: int) -> bool:
    """Send a signal to all of a session's first group; False when nothing of it is left."""
    try:
        os.killpg(leader.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def launch_environment(world: int, launch: Launch) -> dict[str, str]:
    """For the launcher and, on this machine, the processes it starts: each gets its share of the cores."""
    environment = os.environ | accelerator_environment()
    if environment.get("DS_ACCELERATOR") == "cpu" and launch.hostfile is None:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world)))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    return environment


class _Follower:
    """Shows a growing journal from a step on."""

    def __init__(self, path: Path, after: int) -> None:
        self.path, self.step = path, after
        self.offset = 0

    def show(self, show: Show) -> None:
        if not self.path.exists():
            return
        if self.path.stat().st_size < self.offset:  # a resumed run takes back what it will do again
            self.offset = 0
        with self.path.open("rb") as file:
            file.seek(self.offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.offset += len(whole + newline)
        for text in whole.splitlines():
            line = json.loads(text)
            if line["step"] > self.step:
                self.step = line["step"]
                show(line)


def _failure(run: RunDirectory, code: int) -> MPlusError:
    """Why launched processes ended: the first expected error that one of them left, else the first of any kind."""
    words = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.failures.glob("process-*.json"))]
    expected = [word for word in words if word["exit_code"] is not None]
    if expected:
        return MPlusError(expected[0]["message"], expected[0]["hint"], expected[0]["exit_code"])
    saved = find_checkpoints(run.checkpoints)
    resume = f"mplus train --resume {run.path}" if saved else "there is no checkpoint yet"
    what = words[0]["message"] if words else f"DeepSpeed's launcher ended with code {code}"
    return MPlusError(f"A training process failed: {what}.", f"Everything it said: {run.output}; to go on: {resume}")
