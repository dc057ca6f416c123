"""One cell, measured: peak memory, writing, first and further tokens, retrieval, operations, state file."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mplus_cli.machine import PeakMemory, resident_memory
from mplus_cli.profiling.breakdown import breakdown
from mplus_cli.profiling.estimate import Cell, estimate
from mplus_cli.profiling.loading import ModelChoice, load, text_subject
from mplus_cli.profiling.phases import RETRIEVAL, regions
from mplus_cli.profiling.sizes import Sizes
from mplus_cli.profiling.state_size import state_size
from mplus_cli.profiling.subjects import MemorySubject, Subject, synchronize

WARM_WRITES, TIMED_WRITES = 3, 32
REPEATS = 5
PATIENCE = 10.0  # seconds for the timed questions of a cell; there are fewer of them where they take longer
STATE_BYTES = 256 << 20  # of the part of a state file that is written to measure it
Say = Callable[[str], None]


def measure(
    cell: Cell,
    choice: ModelChoice,
    repeats: int | None = None,
    writes: int | None = None,
    trace: Path | None = None,
    with_breakdown: bool = False,
    say: Say = lambda what: None,
) -> dict[str, Any]:
    """Measure a cell in this process, which should be a fresh one.

    Args:
        writes: timed ones, 0 for all. The others are made of random numbers, so that memory is as full as it would be.
        trace: file for the events of the breakdown.
        say: told what is going on.

    Returns:
        Plain JSON; times as `{"median", "low", "high", "count"}` in milliseconds.
    """
    peaks = Peaks(cell.device)
    say("loading the model")
    subject, peaks = _subject(cell, choice, peaks)
    peaks.note("weights")
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "placement": str(subject.device)}
    if isinstance(subject, MemorySubject):
        say("writing")
        found |= _writes(subject, cell, TIMED_WRITES if writes is None else writes)
        found["adapters"] = "merged" if subject.model.adapters.merged else "separate"
    peaks.note("memory")
    say("reading")
    found |= _questions(subject, cell.new_tokens, repeats, peaks)
    found |= peaks.result()
    say("counting operations")
    if isinstance(subject, MemorySubject):
        found["retrieval_ms"] = _retrieval(subject, min(repeats or REPEATS, found["first_token_ms"]["count"]))
        found["long_term_tokens"] = len(subject.memory.long_term[0]) if subject.memory.long_term else 0
        found["retrieved"] = [len(rows[0].created) for rows in subject.memory.last_retrieval]
    found["flops"] = _flops(subject, cell)
    if isinstance(subject, MemorySubject):
        found["state_bytes"] = _state(subject)
    if with_breakdown:
        say("taking the time of every phase")
        found["breakdown"] = breakdown(subject, cell.new_tokens, trace)
    return found


class Peaks:
    """The most memory held up to the end of each phase: as CUDA's allocator counts it, else resident in main memory."""

    def __init__(self, device: torch.device) -> None:
        self.kind = "gpu" if device.type == "cuda" else "host"
        self.peak = PeakMemory(device)
        self.base = 0 if self.kind == "gpu" else resident_memory()
        self.noted: dict[str, int] = {}

    def note(self, phase: str) -> None:
        self.noted[phase] = self.peak.bytes()[self.kind]

    def result(self) -> dict[str, Any]:
        """`peak_bytes`, and what each phase added to it; the libraries are what was there before the model."""
        parts, before = {"libraries": self.base}, self.base
        for phase, held in self.noted.items():
            parts[phase], before = max(0, held - before), max(before, held)
        kind = "CUDA allocator" if self.kind == "gpu" else "resident memory of the process"
        host = self.peak.bytes()["host"]
        return {"peak_bytes": before, "peak_parts": parts, "peak_kind": kind, "host_peak_bytes": host}


def _subject(cell: Cell, choice: ModelChoice, peaks: Peaks) -> tuple[Subject, Peaks]:
    if cell.asked.has_memory:
        model = load(choice)
        return MemorySubject(model, cell.asked, cell.length - cell.prompt, cell.prompt, cell.stored), peaks
    base, subject = peaks.base, text_subject(choice, cell.asked, cell.length)
    peaks = Peaks(cell.device)  # the adapters and retrievers of the checkpoint are not the plain model's
    peaks.base = base
    return subject, peaks


def _writes(subject: MemorySubject, cell: Cell, timed: int) -> dict[str, Any]:
    """Time the last writes of the text; whatever comes before them is there, but not timed."""
    whole = subject.writes
    if not whole:
        return {"writes": 0, "write_ms": None, "inject_tokens_per_s": None, "inject_ms": 0.0}
    wanted = whole if timed == 0 else min(timed, whole)
    warm = min(WARM_WRITES, whole - 1)
    wanted = min(wanted, whole - warm)
    subject.fill(whole - warm - wanted)
    for _ in range(warm):
        subject.write()
    times = [1e3 * subject.write() for _ in range(wanted)]
    write = spread(times)
    rates = [1e3 * subject.chunk / t for t in times]
    return {
        "writes": whole,
        "write_ms": write,
        "inject_tokens_per_s": spread(rates),
        "inject_ms": whole * write["median"],
    }


def _questions(subject: Subject, new_tokens: int, repeats: int | None, peaks: Peaks) -> dict[str, Any]:
    start = time.perf_counter()
    subject.ask(min(2, new_tokens))
    peaks.note("reading")
    seconds = time.perf_counter() - start
    count = repeats or max(1, min(REPEATS, int(PATIENCE / (2 * seconds))))
    first, second, tokens = [], [], []
    for _ in range(count):
        subject.changed()
        stamps = subject.ask(new_tokens)
        first.append(1e3 * stamps[0])
        if new_tokens:
            tokens.append(1e3 * (stamps[-1] - stamps[0]) / new_tokens)
        if isinstance(subject, MemorySubject):
            second.append(1e3 * subject.ask(0)[0])
    peaks.note("generating")
    return {
        "first_token_ms": spread(first),
        "second_question_ms": spread(second) if second else None,
        "token_ms": spread(tokens) if tokens else None,
    }


def _retrieval(subject: MemorySubject, repeats: int) -> dict[str, float] | None:
    """Milliseconds of search, gathering and copying in the first question after a write, apart from the timed ones."""
    if not subject.memory.long_term or not len(subject.memory.long_term[0]):
        return None
    times = []
    for _ in range(repeats):
        clock = Clock(subject.device)
        subject.changed()
        with regions(subject.model, clock.region, RETRIEVAL):
            subject.ask(0)
        times.append(1e3 * clock.seconds)
    return spread(times)


class Clock:
    """Seconds inside outermost regions."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self._depth = device, 0.0, 0

    @contextmanager
    def region(self, phase: str) -> Iterator[None]:
        self._depth += 1
        if self._depth == 1:
            synchronize(self.device)
            start = time.perf_counter()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                synchronize(self.device)
                self.seconds += time.perf_counter() - start


def _flops(subject: Subject, cell: Cell) -> dict[str, int]:
    """Counted; of a quantized backbone by formula, since torch's counter does not know its products."""
    if cell.quantize is None:
        return count_flops(subject, cell.new_tokens)
    return estimate(Sizes.of(subject.model.config, subject.model.dtype), cell)["flops"]


def count_flops(subject: Subject, new_tokens: int) -> dict[str, int]:
    """Operations by torch's counter: of a write, of the first question after it, of one further token, and of all."""
    write = 0
    if isinstance(subject, MemorySubject) and subject.writes:
        with counter() as count:
            subject.write()
        write = count.get_total_flops()
    subject.changed()
    marks: list[int] = []
    with counter() as count:
        subject.ask(max(1, new_tokens), lambda: marks.append(count.get_total_flops()))
    token = (marks[-1] - marks[0]) // max(1, len(marks) - 1)
    writes = subject.writes if isinstance(subject, MemorySubject) else 0
    return {"write": write, "first_token": marks[0], "token": token, "total": writes * write + marks[0]}


def counter() -> FlopCounterMode:
    """Torch's counter, which does not know two of the kernels that a CPU runs."""
    custom: dict[Any, Any] = {}
    for name in ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable"):
        if hasattr(torch.ops.aten, name):
            custom[getattr(torch.ops.aten, name)] = _attention_flops
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        custom[torch.ops.mkldnn._linear_pointwise] = _linear_flops
    return FlopCounterMode(display=False, custom_mapping=custom)


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (width + value[3])


def _linear_flops(rows: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    count = 1
    for size in rows[:-1]:
        count *= size
    return 2 * count * weight[0] * weight[1]


def _state(subject: MemorySubject) -> int | None:
    """Measured; None where writing even a part of the file would be much (the estimate has it then)."""
    memory, config = subject.memory, subject.config
    row = memory.short_term.values[0, :, 0].nbytes
    if row * (config.short_term_size + config.initial_long_term_size) > STATE_BYTES:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return state_size(subject.model, subject, Path(folder))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least, most and how many."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "count": len(values)}
