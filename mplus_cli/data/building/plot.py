"""The picture of a build: how many documents, and from where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mplus_cli.data.building.shards import atomic_write

_Counts = Mapping[str, Mapping[str, int]]
_PALE, _BLUE = "#b8c4d6", "#2f5d9b"
_COLOURS = (
    "#7da7d9",
    "#f2b366",
    "#8cc29a",
    "#d98f8f",
    "#b5a3d6",
    "#c9b49a",
    "#e3b3d0",
    "#a8a8a8",
    "#9fd3d6",
    "#d9d27a",
)
_LOG_FROM = 50  # times more in one bucket than in another: on a linear axis the small ones would vanish


def plot_counts(found: _Counts, kept: _Counts | None, path: Path, what: str = "tokens per document") -> None:
    """Write a PNG: documents by bucket (found and kept), and the share of each source. Needs matplotlib, else nothing.

    Args:
        found: bucket -> source -> documents.
        kept: the same of what the build holds; None where that is all of it.
        what: the buckets are of.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(11, 4.2))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.08, right=0.87, bottom=0.17, top=0.9, wspace=0.2)
    _draw_counts(left, found, kept)
    _draw_shares(right, found, kept is None)
    for axes in (left, right):
        axes.set_xlabel(what)
        axes.tick_params(axis="x", rotation=0 if max(map(len, found), default=0) < 9 else 20)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})


def _draw_counts(axes, found: _Counts, kept: _Counts | None) -> None:
    totals = [sum(by.values()) for by in found.values()]
    series = [("in the build", totals, _BLUE)]
    if kept is not None:
        held = [sum(kept[bucket].values()) for bucket in found]
        series = [("in the corpus", totals, _PALE), ("in the build", held, _BLUE)]
    width = 0.8 / len(series)
    for number, (label, heights, colour) in enumerate(series):
        places = [i + (number - (len(series) - 1) / 2) * width for i in range(len(heights))]
        axes.bar_label(
            axes.bar(places, heights, width, label=label, color=colour),
            [f"{height:,}" for height in heights],
            fontsize=8,
            padding=2,
        )
    present = [height for _, heights, _ in series for height in heights if height]
    if present and max(present) > _LOG_FROM * min(present):
        axes.set_yscale("log")
        axes.set_ylim(bottom=10 ** (len(str(min(present))) - 2))
    else:
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.margins(y=0.12)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel("documents")
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _draw_shares(axes, found: _Counts, whole: bool) -> None:
    """Bars that add up to 100%, one colour per source, the largest source at the bottom."""
    bottom = [0.0] * len(found)
    for colour, (name, sources) in zip(_COLOURS, grouped_sources(found, len(_COLOURS)), strict=False):
        shares = [100 * sum(by.get(s, 0) for s in sources) / (sum(by.values()) or 1) for by in found.values()]
        bars = axes.bar(list(found), shares, 0.8, bottom=bottom, label=name, color=colour)
        axes.bar_label(bars, [f"{s:.0f}%" if s >= 4 else "" for s in shares], label_type="center", fontsize=8)
        bottom = [below + share for below, share in zip(bottom, shares, strict=True)]
    axes.set_ylabel(f"share of documents in the {'build' if whole else 'corpus'} (%)")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def grouped_sources(found: _Counts, most: int) -> list[tuple[str, list[str]]]:
    """(name, sources): the largest first, each for itself; where there are more than `most`, the smallest together."""
    totals: Counter[str] = Counter()
    for by in found.values():
        totals.update(by)
    ordered = sorted(totals, key=lambda source: (-totals[source], source))
    alone = ordered if len(ordered) <= most else ordered[: most - 1]
    others = ordered[len(alone) :]
    named = [(source.removeprefix("RedPajama"), [source]) for source in alone]
    return [*named, (f"{len(others):,} others", others)] if others else named
