"""Running the stages of a build on this machine with datatrove. Every task can be resumed.

A stage is a `Step` and a number of tasks; task r of n does its share alone and writes whole files under the build's
`work` folder. datatrove remembers which tasks are done and runs the others.
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
from mplus_cli.errors import MissingExtraError, MPlusError

try:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise MissingExtraError("building training sets needs datatrove", "pip install 'mplus[data]'") from error

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

    @property
    def failure(self) -> Path:
        """Where a task says why it failed."""
        return self.work / "failed" / f"{self.name}.json"

    def task(self, rank: int, tasks: int) -> None:
        """What each stage is: its share `rank` of `tasks`. Every stage defines it."""
        raise NotImplementedError

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        try:
            self.task(rank, world_size)
        except MPlusError as error:  # for whoever waits on another machine
            with atomic_write(self.failure) as file:
                file.write(json.dumps({"message": error.message, "hint": error.hint}).encode())
            raise

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


def run_local(stage: Stage, folder: Path, processes: int) -> None:
    """Run the tasks of a stage that are not done yet; Ctrl-C and errors of tasks come through.

    Raises:
        MPlusError: a worker was killed, which mostly means that memory ran out.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core already
    executor = _LocalExecutor([stage.step], tasks=stage.tasks, logging_dir=str(jobs_folder(folder, stage)))
    ranks = executor.get_incomplete_ranks()
    with Watch(stage, folder):
        if min(processes, len(ranks)) <= 1:
            quiet_datatrove()
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
    if sys.platform == "linux":  # the server imports once what the workers of all stages need
        context.set_forkserver_preload([type(executor.pipeline[0]).__module__, "tokenizers"])
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
    quiet_datatrove()

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            leave.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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


def jobs_folder(folder: Path, stage: Stage) -> Path:
    """Where datatrove keeps its records of a stage."""
    return folder / ".jobs" / stage.step.name


def quiet_datatrove() -> None:
    """datatrove logs every task to stderr; we show one line of progress instead."""
    from loguru import logger

    logger.disable("datatrove")


class Watch:
    """Shows the progress of a stage while the main thread waits for it."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self._ticks = folder / ".work" / "progress" / stage.step.name
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _loop(self) -> None:
        with Progress(self.stage.label, self.stage.amount, self.stage.unit) as progress:
            while not self._end.wait(_POLL_SECONDS):
                progress.update(min(self._done(), self.stage.amount))

    def _done(self) -> float:
        total = 0.0
        for path in self._ticks.glob("*"):
            with contextlib.suppress(ValueError, OSError):
                total += float(path.read_text())
        return total
