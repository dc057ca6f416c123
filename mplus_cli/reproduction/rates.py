"""How long a row takes, from rates that were measured: in a folder of `mplus profile`, else the authors' own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mplus_cli.console import duration
from mplus_cli.profiling.published import LATENCY_LENGTH, OFFLOAD_OVERHEAD, OFFLOAD_SECONDS
from mplus_cli.reproduction.entry import Entry
from mplus_cli.reproduction.found import Profile

_LONG = 86_400 * 2  # seconds from which days are easier to read


@dataclass(frozen=True)
class Rate:
    """Tokens of text that M+ reads in a second, and how long a question takes where that is known.

    Attributes:
        source: what was measured where.
    """

    tokens_per_second: float
    seconds_per_question: float | None
    source: str

    def time(self, entry: Entry) -> str:
        """How long one system takes for a row at most, and by which rate; empty where nothing is read."""
        if entry.duration or not entry.tokens:
            return entry.duration
        seconds = entry.tokens / self.tokens_per_second
        asked = ""
        if entry.questions and self.seconds_per_question is not None:
            seconds += entry.questions * self.seconds_per_question
            asked = f" and {entry.questions:,} questions"
        elif entry.questions:
            asked = f"; {entry.questions:,} questions not counted"
        long = f"{seconds / 86_400:.0f} days" if seconds >= _LONG else duration(seconds)
        work = f"{_count(entry.tokens)} tokens at {self.tokens_per_second:,.0f} a second{asked}"
        return f"up to {long} for one system: {work}"


# The only latency of M+ in print: what offloading adds, in seconds and as a share.
PUBLISHED = Rate(
    LATENCY_LENGTH / (OFFLOAD_SECONDS / OFFLOAD_OVERHEAD),
    None,
    f"the authors' M+ 8B on one H100, which takes about {OFFLOAD_SECONDS / OFFLOAD_OVERHEAD:.0f} s for 128k tokens: "
    f"offloading adds about {OFFLOAD_SECONDS:.0f} s or {OFFLOAD_OVERHEAD:.0%} there (M+ section 4.6)",
)


def choose_rate(profiles: Sequence[Profile]) -> Rate:
    """The rate of the longest text that `mplus` was measured on, else the published one."""
    cells = [
        (cell, profile)
        for profile in profiles
        for cell in profile.cells
        if cell["system"] == "mplus" and cell["status"] == "ok"
    ]
    if not cells:
        return PUBLISHED
    cell, profile = max(cells, key=lambda pair: pair[0]["length"])
    question = cell["first_token_ms"]["median"] / 1e3
    seconds = (cell.get("inject_ms") or 0.0) / 1e3 + question
    source = f"measured in {profile.folder}: {profile.model} on {profile.machine}, mplus at {cell['length']:,} tokens"
    return Rate(cell["length"] / seconds, question, source)


def _count(tokens: int) -> str:
    return f"{tokens / 1e6:,.0f} million" if tokens >= 10_000_000 else f"{tokens:,}"
