"""Every table and figure of both papers, in the order in which they stand there."""

from __future__ import annotations

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.registry import did_you_mean
from mplus_cli.reproduction import memoryllm, mplus_cost, mplus_quality, mplus_retention
from mplus_cli.reproduction.entry import Entry

_ORDER = (
    *("figure-1", "figure-2", "table-1", "figure-3", "table-2", "figure-4", "figure-5", "table-3", "section-4-6-1"),
    *("figure-6", "figure-7", "figure-8", "figure-9", "table-4", "appendix-e-4"),
)


def entries() -> tuple[Entry, ...]:
    """M+ first, then MemoryLLM."""
    parts = (mplus_cost, mplus_quality, mplus_retention)
    found = {entry.id: entry for part in parts for entry in part.entries()}
    return (*(found[f"mplus-{place}"] for place in _ORDER), *memoryllm.entries())


def choose(names: tuple[str, ...]) -> tuple[Entry, ...]:
    """The entries of these ids; all of them where none is named.

    Raises:
        UsageError: there is none of such an id.
    """
    known = {entry.id: entry for entry in entries()}
    wrong = [name for name in names if name not in known]
    if wrong:
        lines = "; ".join(f"there is no table or figure {name!r}{did_you_mean(name, known)}" for name in wrong)
        raise UsageError(lines, "mplus eval reproduce lists them")
    return tuple(known[name] for name in names) if names else tuple(known.values())
