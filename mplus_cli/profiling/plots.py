"""Memory and latency against the length of the text, stacked by phase, one panel per system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mplus_cli.evaluation.plots import COLOURS, new_figure, save
from mplus_cli.profiling.cells import OK, OOM
from mplus_cli.profiling.phases import RETRIEVAL
from mplus_cli.profiling.request import length_text
from mplus_cli.profiling.running import Row

MEMORY_PHASES = ("libraries", "weights", "memory", "reading", "generating")
LATENCY_PHASES = ("inject the text", " + ".join(("search", *RETRIEVAL[1:])), "read the prompt", "further tokens")


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """memory.png and latency.png; none where nothing was measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if not any(row.result["status"] == OK for row in rows):
        return []
    memory = _figure(rows, MEMORY_PHASES, memory_parts, "peak memory, MB, by the phase that raised it")
    latency = _figure(rows, LATENCY_PHASES, latency_parts, "seconds")
    return [save(memory, folder / "memory.png"), save(latency, folder / "latency.png")]


def memory_parts(result: Mapping[str, Any], new_tokens: int) -> list[float]:
    """MB by phase; their sum is the peak."""
    return [result["peak_parts"].get(phase, 0) / 1e6 for phase in MEMORY_PHASES]


def latency_parts(result: Mapping[str, Any], new_tokens: int) -> list[float]:
    """Seconds by phase, from the first token of the text to the last of the answer."""
    retrieval = (result.get("retrieval_ms") or {"median": 0.0})["median"]
    first = result["first_token_ms"]["median"]
    retrieval = min(retrieval, first)
    tokens = (result.get("token_ms") or {"median": 0.0})["median"] * new_tokens
    return [ms / 1e3 for ms in (result.get("inject_ms") or 0.0, retrieval, first - retrieval, tokens)]


def _figure(rows: Sequence[Row], phases: Sequence[str], parts: Any, ylabel: str) -> Any:
    labels = list(dict.fromkeys(row.planned.cell.asked.label for row in rows))
    lengths = sorted({row.planned.cell.length for row in rows})
    figure, axes = new_figure(len(labels), width=max(2.6, 0.9 + 0.55 * len(lengths)), height=4.0)
    highest = 0.0
    for axis, label in zip(axes, labels, strict=True):
        mine = {row.planned.cell.length: row for row in rows if row.planned.cell.asked.label == label}
        for at, length in enumerate(lengths):
            highest = max(highest, _bar(axis, at, mine.get(length), parts))
        axis.set_title(label, fontsize=10)
        axis.set_xticks(range(len(lengths)), [length_text(length) for length in lengths], rotation=45, fontsize=8)
        axis.set_xlim(-0.6, len(lengths) - 0.4)
        axis.set_xlabel("tokens of text")
    for axis in axes:
        axis.set_ylim(0, highest * 1.12 or 1)
    axes[0].set_ylabel(ylabel)
    patches = _patches(phases)
    figure.legend(handles=patches, loc="outside lower center", ncols=len(phases), fontsize=8, frameon=False)
    return figure


def _bar(axis: Any, at: int, row: Row | None, parts: Any) -> float:
    """One stacked bar, or what is in its place; returns its height."""
    status = None if row is None else row.result["status"]
    if row is None or status != OK:
        axis.text(at, 0, " OOM" if status == OOM else " -", rotation=90, ha="center", va="bottom", fontsize=8)
        return 0.0
    bottom = 0.0
    for part, colour in zip(parts(row.result, row.planned.cell.new_tokens), COLOURS, strict=False):
        axis.bar(at, part, bottom=bottom, color=colour, width=0.75)
        bottom += part
    axis.text(at, bottom, f"{bottom:,.3g}" if bottom < 1000 else f"{bottom:,.0f}", ha="center", va="bottom", fontsize=7)
    return bottom


def _patches(phases: Sequence[str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(color=colour, label=phase) for phase, colour in zip(phases, COLOURS, strict=False)]
