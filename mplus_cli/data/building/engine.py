"""Running the stages of a build with datatrove: on this machine, on Slurm, or on Ray. Every task can be resumed.

A stage is a `Step` and a number of tasks; task r of n does its share alone and writes whole files under the build's
`work` folder. datatrove remembers which tasks are done and runs the others; on a cluster the stages are submitted as
jobs that wait for each other.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mplus_cli.console import Progress
from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import MissingExtraError, MPlusError, UsageError

try:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise MissingExtraError("building training sets needs datatrove", "pip install 'mplus[data]'") from error

EXECUTORS = ("local", "slurm", "ray")
_POLL_SECONDS = 0.5
_TICK_SECONDS = 0.5


class Step(PipelineStep):
    """One stage of a build. A subclass fills `task`; its fields travel to the workers.

    Args:
        folder: of the build.
    """

    type = "mplus"
    name = "build"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._next_tick = 0.0

    @property
    def work(self) -> Path:
        return self.folder / ".work"

    def task(self, rank: int, tasks: int) -> None:
        """What each stage is: its share `rank` of `tasks`. Every stage defines it."""
        raise NotImplementedError

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        self.task(rank, world_size)

    def tick(self, rank: int, done: float, last: bool = False) -> None:
        """Tell the watching process how much of the stage's `amount` this task has done, now and then."""
        now = time.monotonic()
        if not last and now < self._next_tick:
            return
        self._next_tick = now + _TICK_SECONDS
        path = self.work / "progress" / self.name / f"{rank}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(done))


@dataclass(frozen=True)
class Stage:
    """A step, how many tasks it is cut into, and how much there is to do in its unit.

    Attributes:
        step: with `name` set.
        label: for people.
        amount: what all ticks add up to.
        unit: "bytes" or a plural such as "rows".
    """

    step: Step
    tasks: int
    label: str
    amount: float
    unit: str = "bytes"


def default_processes() -> int:
    """As many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(stage: Stage, folder: Path, processes: int) -> None:
    """Run the tasks of a stage that are not done yet; Ctrl-C and errors of tasks come through.

    Raises:
        MPlusError: a worker was killed, which mostly means that memory ran out.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core already
    executor = _LocalExecutor([stage.step], tasks=stage.tasks, logging_dir=str(_jobs(folder, stage)))
    ranks = executor.get_incomplete_ranks()
    with _Watch(stage, folder):
        if min(processes, len(ranks)) <= 1:
            _quiet()
            for rank in ranks:
                executor.run_task(rank)
            return
        try:
            _run_in_processes(executor, ranks, processes)
        except BrokenProcessPool:
            raise MPlusError(
                f"a worker process was killed while {stage.label}; the machine may have run out of memory",
                "Run the same command again with fewer --processes; what is done stays done.",
            ) from None


class _LocalExecutor(LocalPipelineExecutor):
    """datatrove's bookkeeping of tasks, without its process pool, which waits for ever for a worker that was killed."""

    def run_task(self, rank: int) -> None:
        # A copy, because a step keeps statistics of one task.
        deepcopy(self)._run_for_rank(rank, local_rank=rank)


def _run_in_processes(executor: _LocalExecutor, ranks: list[int], processes: int) -> None:
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    # Workers hold the reading end of a pipe: when we stop, or are killed, its end tells them to leave at once.
    leave, ours = context.Pipe(duplex=False)
    with _sigint_blocked():
        pool = ProcessPoolExecutor(min(processes, len(ranks)), context, _begin_worker, (leave,))
        futures = [pool.submit(executor.run_task, rank) for rank in ranks]
    try:
        for future in as_completed(futures):
            future.result()
    except BaseException:
        ours.close()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    ours.close()
    leave.close()


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, from their first moment on: the main process answers it."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _begin_worker(leave: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _quiet()

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            leave.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def submit(stages: list[Stage], folder: Path, kind: str, options: dict[str, str]) -> list[str]:
    """Hand the stages to a cluster, each waiting for the one before; returns job ids (Slurm) or runs to the end (Ray).

    Args:
        options: passed to datatrove's executor, such as time=08:00:00 and partition=cpu for Slurm.
    """
    executor_class = _cluster_executor(kind)
    executor = None
    executors = []
    for stage in stages:
        arguments: dict[str, Any] = {key: _value(value) for key, value in options.items()}
        if kind == "slurm":
            arguments.setdefault("job_name", f"mplus-{stage.step.name}")
        try:
            executor = executor_class(
                [stage.step],
                tasks=stage.tasks,
                logging_dir=str(_jobs(folder, stage)),
                depends=executor,
                **arguments,
            )
        except TypeError as error:
            raise UsageError(
                f"datatrove's {kind} executor does not take these options: {error}.",
                "Slurm needs at least --executor-option time=08:00:00 --executor-option partition=NAME",
            ) from error
        executors.append(executor)
    if executor is not None:
        with contextlib.redirect_stdout(sys.stderr):
            executor.run()  # launches what it depends on first
    return [str(e.job_id) for e in executors if getattr(e, "job_id", None)]


def forget_jobs(folder: Path) -> None:
    """Remove datatrove's own records once the build is complete."""
    shutil.rmtree(folder / ".jobs", ignore_errors=True)


def fixed_tasks(work: Path, wanted: int) -> int:
    """The number of tasks of a build: what it was started with, whoever resumes it."""
    path = work / "tasks.json"
    if not path.is_file():
        with atomic_write(path) as file:
            file.write(json.dumps(wanted).encode())
    return json.loads(path.read_bytes())


def _jobs(folder: Path, stage: Stage) -> Path:
    return folder / ".jobs" / stage.step.name


def _cluster_executor(kind: str) -> Any:
    if kind == "slurm":
        if shutil.which("sbatch") is None:
            raise UsageError("Slurm's sbatch is not on this machine.", "Run this on a login node of the cluster.")
        from datatrove.executor.slurm import SlurmPipelineExecutor

        return SlurmPipelineExecutor
    try:
        from datatrove.executor.ray import RayPipelineExecutor
    except ImportError as error:
        raise MissingExtraError("the Ray executor needs ray", "pip install ray") from error
    return RayPipelineExecutor


def _value(text: str) -> Any:
    """Numbers as numbers: datatrove compares and formats them."""
    return int(text) if text.isdigit() else text


def _quiet() -> None:
    """datatrove logs every task to stderr; we show one line of progress instead."""
    from loguru import logger

    logger.disable("datatrove")


class _Watch:
    """Shows the progress of a stage while the main thread waits for it."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self._ticks = folder / ".work" / "progress" / stage.step.name
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _loop(self) -> None:
        with Progress(self.stage.label, self.stage.amount) as progress:
            start, first = time.monotonic(), None
            while not self._end.wait(_POLL_SECONDS):
                done = self._done()
                first = done if first is None else first
                rate = (done - first) / max(time.monotonic() - start, 1e-9)
                progress.update(min(done, self.stage.amount), self._rate(rate))

    def _rate(self, rate: float) -> str:
        return f"{rate / 1e6:.1f} MB/s" if self.stage.unit == "bytes" else f"{rate:.0f} {self.stage.unit}/s"

    def _done(self) -> float:
        total = 0.0
        for path in self._ticks.glob("*"):
            with contextlib.suppress(ValueError, OSError):
                total += float(path.read_text())
        return total
