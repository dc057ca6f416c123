"""Every cell in a process of its own, so that its peak memory is its own and running out of it ends nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mplus_cli.errors import MPlusError, is_out_of_memory
from mplus_cli.profiling.estimate import Cell
from mplus_cli.profiling.loading import ModelChoice

OK, OOM, FAILED, REFUSED = "ok", "oom", "failed", "refused"
LOOK_SECONDS = 0.2
_SAYS_MEMORY = ("Cannot allocate memory", "bad_alloc", "out of memory", "MemoryError", "can't allocate memory")
_KEPT = 2_000  # characters of what a process said last


def run_cell(cell: Cell, choice: ModelChoice, how: Mapping[str, Any], show: Callable[[str], None]) -> dict[str, Any]:
    """Measure a cell in a fresh process.

    Args:
        how: further arguments of `measure`.
        show: told several times a second what the process is doing.

    Returns:
        What `measure` returns, with `status`: `ok`, `oom`, `refused` (bad input) or `failed`, and `why`.

    Raises:
        KeyboardInterrupt: Ctrl-C; the process is gone then.
    """
    context = _context(cell.gpu)
    here, there = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("w+", suffix=".log", errors="replace") as log:
        process = context.Process(target=_work, args=(cell, choice, dict(how), there, log.name), daemon=True)
        try:
            with _uninterrupted():
                process.start()
            there.close()
            result = _listen(here, process, show)
        finally:
            if process.pid is not None:
                process.kill()
                process.join()
            here.close()
        log.seek(0)
        return result if result is not None else _verdict(process.exitcode or 0, log.read())


def _context(gpu: bool) -> Any:
    """A server that has the libraries and forks a process per cell, where forking is safe: it saves seconds a cell."""
    if gpu or not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mplus_cli.profiling.measuring"])
    return context


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the process that it has to end is known."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(here: Connection, process: Any, show: Callable[[str], None]) -> dict[str, Any] | None:
    """Messages until the result, or None when the process is gone without one."""
    doing = "starting"
    while True:
        show(doing)
        try:
            if here.poll(LOOK_SECONDS):
                message = here.recv()
                if isinstance(message, dict):
                    return message
                doing = message
            elif not process.is_alive() and not here.poll():
                return None
        except (EOFError, OSError):
            process.join()
            return None


def _verdict(code: int, said: str) -> dict[str, Any]:
    """What the end of a process means that left no word."""
    if code == -signal.SIGKILL:
        return {"status": OOM, "why": "the system killed the process, as it does when memory runs out"}
    if any(text in said for text in _SAYS_MEMORY):
        return {"status": OOM, "why": "memory could not be had"}
    last = said.strip()[-_KEPT:].splitlines()
    return {"status": FAILED, "why": f"the process ended with code {code}" + (f": {last[-1]}" if last else "")}


def _work(cell: Cell, choice: ModelChoice, how: dict[str, Any], there: Connection, log: str) -> None:
    """The process of a cell. What libraries print goes to the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    target = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    there.send(_result(cell, choice, how, there))
    there.close()


def _result(cell: Cell, choice: ModelChoice, how: dict[str, Any], there: Connection) -> dict[str, Any]:
    from mplus_cli.profiling.measuring import measure

    try:
        trace = how.pop("trace", None)
        found = measure(cell, choice, trace=None if trace is None else Path(trace), say=there.send, **how)
        return {"status": OK, "why": "", **found}
    except MPlusError as error:
        return {"status": REFUSED, "why": error.message, "hint": error.hint}
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        if is_out_of_memory(error) or any(text in str(error) for text in _SAYS_MEMORY):
            return {"status": OOM, "why": first or type(error).__name__}
        return {"status": FAILED, "why": f"{type(error).__name__}: {first}"}
