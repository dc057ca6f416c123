"""Pictures of results: curves with their intervals, heat maps, bars. Tasks draw their own with the same parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import MissingExtraError
from mplus_cli.evaluation.task import SystemResults, Task

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a8a", "#b2a300", "#7f3c8d")
MARKERS = "osD^vPX*<>"
MOST_TICKS = 12


class Point(NamedTuple):
    """A place on a curve; no interval where `low` is None."""

    x: float
    mean: float
    low: float | None = None
    high: float | None = None


def new_figure(columns: int = 1, width: float = 6.4, height: float = 4.2) -> tuple[Any, list[Any]]:
    """A figure and its axes, side by side. Width and height in inches, of one of them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib", 'pip install "mplus[eval]"') from error
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG; the same figure gives the same bytes."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return path


def points(results: SystemResults, key: str, metric: str, where: Mapping[str, Any] | None = None) -> list[Point]:
    """The curve of a metric by a numeric key of metadata, from the groups of results.json.

    Args:
        where: values of further keys; groups by other keys than these and `key` are left out.
    """
    wanted = dict(where or {})
    found = []
    for group in results.results["groups"]:
        by = dict(group["by"])
        x = by.pop(key, None)
        score = group["scores"].get(metric)
        if by == wanted and is_number(x) and score and score["mean"] is not None:
            found.append(Point(float(x), score["mean"], score["low"], score["high"]))
    return sorted(found)


def draw_curves(
    axes: Any, curves: Mapping[str, Sequence[Point]], xlabel: str, ylabel: str, bounded: bool = True
) -> None:
    """Lines with shaded intervals, and a legend.

    Args:
        bounded: the values lie between 0 and 1, and the axis shows all of that.
    """
    for number, (label, curve) in enumerate(curves.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        x = [point.x for point in curve]
        axes.plot(x, [point.mean for point in curve], marker=marker, markersize=4, label=label, color=colour)
        if all(point.low is not None for point in curve):
            low, high = [point.low for point in curve], [point.high for point in curve]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    _scale(axes, sorted({point.x for curve in curves.values() for point in curve}))
    if bounded:
        axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    if len(curves) > 1:
        axes.legend(fontsize=8, framealpha=0.8, edgecolor="none")


def draw_heat_map(
    axes: Any, x: Sequence[Any], y: Sequence[Any], values: Mapping[tuple[Any, Any], float], xlabel: str, ylabel: str
) -> None:
    """Cells coloured from 0 (dark) to 1 (bright), each with its number; grey where there is none.

    Args:
        values: (x, y) -> value.
    """
    grid = [[values.get((a, b), math.nan) for a in x] for b in y]
    from matplotlib import colormaps

    colours = colormaps["viridis"].with_extremes(bad="#d8d8d8")
    axes.imshow(grid, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(grid):
        for column, value in enumerate(line):
            if not math.isnan(value):
                ink = "white" if value < 0.6 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(x)), [_name(value) for value in x])
    axes.set_yticks(range(len(y)), [_name(value) for value in y])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def draw_bars(axes: Any, bars: Mapping[str, Point], ylabel: str, bounded: bool = True) -> None:
    """One bar for each label, with its interval and its number."""
    for number, (label, point) in enumerate(bars.items()):
        axes.bar([label], [point.mean], 0.7, color=COLOURS[number % len(COLOURS)], alpha=0.85)
        if point.low is not None and point.high is not None:
            error = [[max(0.0, point.mean - point.low)], [max(0.0, point.high - point.mean)]]
            axes.errorbar([label], [point.mean], error, color="#333333", capsize=3, linewidth=1)
        axes.annotate(f"{point.mean:.2f}", (number, 0), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    if bounded:
        axes.set_ylim(0, 1.03)
    axes.set_ylabel(ylabel)
    axes.tick_params(axis="x", rotation=20 if len(bars) > 4 else 0)


def draw(task: Task, results: Sequence[SystemResults], folder: Path) -> list[Path]:
    """The task's own pictures of the systems that have answered something, or the usual one; returns the PNG files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    results = [one for one in results if one.samples]
    if not results:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    own = task.plot(results, folder)
    return default_plot(task, results, folder) if own is None else own


def default_plot(task: Task, results: Sequence[SystemResults], folder: Path) -> list[Path]:
    """Curves of the first metric by each numeric key of `group_by`; bars where there is none."""
    metric = next(iter(task.metrics))
    keys = [key for key in task.group_by if any(len(points(one, key, metric)) > 1 for one in results)]
    figure, axes = new_figure(max(1, len(keys)))
    bounded = not task.measures
    for one, key in zip(axes, keys, strict=False):
        draw_curves(one, {r.label: points(r, key, metric) for r in results}, key.replace("_", " "), metric, bounded)
    if not keys:
        scores = {one.label: one.results["scores"][metric] for one in results}
        bars = {k: Point(0, s["mean"], s["low"], s["high"]) for k, s in scores.items() if s["mean"] is not None}
        draw_bars(axes[0], bars, metric, bounded)
    counts = sorted({one.results["scores"][metric]["items"] for one in results})
    figure.suptitle(f"{task.name}: {metric}, {'-'.join(map(str, counts))} items, 95% intervals", fontsize=11)
    return [save(figure, folder / f"{task.name}.png")]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _scale(axes: Any, places: Sequence[float]) -> None:
    """A logarithmic x axis for places that lie so, and ticks at as many places as have room for their numbers."""
    above = [place for place in places if place > 0]
    if len(above) < 3 or places[0] < 0 or above[len(above) // 2] > 0.25 * above[-1]:
        return
    if above[0] == places[0]:
        axes.set_xscale("log", base=2)
    else:
        axes.set_xscale("symlog", base=2, linthresh=above[0])  # from 0 to the first place like one doubling
    heights = {place: math.log2(place / above[0]) + 1 if place > 0 else 0.0 for place in places}
    room = (heights[places[-1]] - heights[places[0]]) / MOST_TICKS
    ticks = [places[-1]]
    for place in reversed(places):
        if heights[ticks[-1]] - heights[place] >= room:
            ticks.append(place)
    axes.set_xticks(ticks, [f"{tick:,g}" if tick < 10_000 else f"{tick / 1000:,g}k" for tick in ticks])
    axes.minorticks_off()
