"""The record of a run: one JSON line every `logging.every` steps, TensorBoard events by option.

    {"step": 120, "loss": 2.31, "tasks": {"two_chunk": {"loss": 2.4, "share": 0.2}, ...}, "parts": {"recall": 0.3, ...},
     "tokens": 81920, "rate_factor": 1.0, "rates": {"write_adapter": 4e-4, ...}, "gradient_norm": 0.8,
     "tokens_per_second": 9021.5, "mfu": 0.31, "peak_bytes": 1200000000, "epoch": 0, "padding_share": 0.04,
     "seconds": {"total": 9.1, "data": 0.1, "forward": 4.2, ...}}

`step` counts steps done; losses, parts, tokens and seconds are of the steps since the line before, on all processes. A
checkpoint ends the line that it falls into, so that a resumed run writes the same lines as one never interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mplus_cli.errors import MissingExtraError
from mplus_cli.training.disk import write_text
from mplus_cli.training.processes import Processes
from mplus_cli.training.step import StepOutput

PHASES = ("data", "forward", "backward", "optimizer", "validation", "checkpoint")


class Stopwatch:
    """Seconds per phase of the loop.

    Args:
        device: waited for at the end of each phase if `exact`; else kernels that still run count for the phase that
            waits for them.
    """

    def __init__(self, device: torch.device, exact: bool = False) -> None:
        self.device, self.exact = device, exact and device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Begin again."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside for `name`."""
        begin = time.perf_counter()
        yield
        if self.exact:
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - begin

    def total(self) -> float:
        """Seconds since the last reset."""
        return time.perf_counter() - self.start


class Window:
    """What has happened on this process since the last line of the journal."""

    def __init__(self) -> None:
        self.steps = 0
        self.tokens = 0
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, output: StepOutput) -> None:
        """Take in one batch."""
        self.tokens += output.tokens
        self._add("loss", float(output.loss.detach()))
        self._add(f"tasks/{output.task}", float(output.loss.detach()))
        for name, value in output.parts.items():
            self._add(f"parts/{name}", float(value))

    def _add(self, name: str, value: float) -> None:
        if not math.isfinite(value):  # a measure without anything to measure; a loss would have stopped the run
            return
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (total + value, count + 1)


def merge(windows: list[Window]) -> dict[str, Any]:
    """Means over the windows of all processes, as the journal has them."""
    sums: dict[str, tuple[float, int]] = {}
    for window in windows:
        for name, (total, count) in window.sums.items():
            before = sums.get(name, (0.0, 0))
            sums[name] = (before[0] + total, before[1] + count)
    means = {name: total / count for name, (total, count) in sums.items()}
    batches = sums["loss"][1]
    tasks = sorted(name.removeprefix("tasks/") for name in sums if name.startswith("tasks/"))
    return {
        "loss": means["loss"],
        "tasks": {t: {"loss": means[f"tasks/{t}"], "share": sums[f"tasks/{t}"][1] / batches} for t in tasks},
        "parts": {n.removeprefix("parts/"): means[n] for n in sorted(means) if n.startswith("parts/")},
        "tokens": sum(window.tokens for window in windows),
    }


class Journal:
    """Writes the lines; only rank 0 has files.

    Args:
        path: of the JSONL; lines after `step`, which an interrupted run left, are removed.
        tensorboard: folder of the events, or None.

    Raises:
        MissingExtraError: TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, tensorboard: Path | None, step: int, processes: Processes) -> None:
        self.processes = processes
        self.window = Window()
        self._file = self._board = None
        if not processes.first:
            return
        if path.exists():
            kept = [line for line in read_journal(path) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        if tensorboard is not None:
            self._board = _board(tensorboard, step)

    def close(self) -> None:
        """Finish the files."""
        for file in (self._file, self._board):
            if file is not None:
                file.close()

    def write(self, step: int, extra: dict[str, Any]) -> dict[str, Any]:
        """One line about the steps since the last one; all processes together.

        Returns:
            The line.
        """
        windows = self.processes.gather(self.window)
        self.window = Window()
        line = {"step": step, **merge(windows), **extra}
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in scalars(line):
                self._board.add_scalar(name, value, step)
        return line


def scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The finite numbers of a line with names for curves: `loss`, `tasks/two_chunk`, `parts/recall`, ..."""
    for name, value in line.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                number = number["loss"] if isinstance(number, dict) else number
                if isinstance(number, (int, float)) and math.isfinite(number):
                    yield f"{name}/{inner}", float(number)
        elif isinstance(value, (int, float)) and name != "step" and math.isfinite(value):
            yield name, float(value)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a process that was killed may have left half of one."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("logging.tensorboard needs tensorboard", 'pip install "mplus[train]"') from error
    return SummaryWriter(str(folder), purge_step=step + 1)
