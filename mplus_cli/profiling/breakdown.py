"""Time by phase, from torch's profiler: of a write, of the first question after it, of every further token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from mplus_cli.profiling.phases import PHASES, regions
from mplus_cli.profiling.subjects import MemorySubject, Subject, synchronize

MARK = "mplus: "
WRITE, FIRST, TOKENS = "write", "first token", "further tokens"
OTHER = "other"
REPEATS = 3


def breakdown(subject: Subject, new_tokens: int, trace: Path | None = None) -> dict[str, dict[str, float]]:
    """Milliseconds by part of the work (`write`, `first token`, `token`) and phase; `other` is what no phase covers.

    The profiler costs time itself: shares count, the totals are larger than without it. On a GPU, times are those of
    its kernels.

    Args:
        trace: where to put the events, for chrome://tracing or Perfetto; nowhere by default.
    """
    activities = [ProfilerActivity.CPU]
    if subject.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler, regions(subject.model, region):
        for _ in range(REPEATS):
            _work(subject, new_tokens)
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    return _sum(profiler.events(), subject.device.type == "cuda", max(1, new_tokens))


@contextmanager
def region(phase: str) -> Iterator[None]:
    """A range of this name in the profile."""
    with record_function(MARK + phase):
        yield


def _work(subject: Subject, new_tokens: int) -> None:
    if isinstance(subject, MemorySubject) and subject.writes:
        with region(WRITE):
            subject.write()
    subject.changed()
    stages = [region(FIRST), region(TOKENS)]

    def on_token() -> None:
        if len(stages) == 2:
            stages.pop(0).__exit__(None, None, None)
            stages[0].__enter__()

    stages[0].__enter__()
    subject.ask(max(1, new_tokens), on_token)
    stages[0].__exit__(None, None, None)
    synchronize(subject.device)


def _sum(events: Any, gpu: bool, tokens: int) -> dict[str, dict[str, float]]:
    """Exclusive time of every phase inside its part of the work."""
    marked = [e for e in events if e.name.startswith(MARK) and e.device_type == torch.autograd.DeviceType.CPU]
    found: dict[str, dict[str, float]] = {}
    for event in marked:
        name = event.name.removeprefix(MARK)
        stage = _stage(event)
        if stage is None:
            continue
        inside = sum(_total(child, gpu) for child in _nearest(event))
        phases = found.setdefault(stage, dict.fromkeys((*PHASES, OTHER), 0.0))
        phases[name if name in PHASES else OTHER] += (_total(event, gpu) - inside) / 1e3 / REPEATS
    if TOKENS in found:
        found["token"] = {phase: ms / tokens for phase, ms in found.pop(TOKENS).items()}
    return {stage: {p: ms for p, ms in phases.items() if ms > 0} for stage, phases in found.items()}


def _stage(event: Any) -> str | None:
    while event is not None:
        name = event.name.removeprefix(MARK)
        if name in (WRITE, FIRST, TOKENS):
            return name
        event = event.cpu_parent
    return None


def _nearest(event: Any) -> list[Any]:
    """Marked events inside this one, without those inside of them."""
    found: list[Any] = []
    for child in event.cpu_children:
        found += [child] if child.name.startswith(MARK) else _nearest(child)
    return found


def _total(event: Any, gpu: bool) -> float:
    return float(event.device_time_total if gpu else event.cpu_time_total)
