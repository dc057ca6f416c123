"""The curves of a run as one picture: loss by task, retriever recall, learning rate, speed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mplus_cli.training.journal import scalars

Curve = tuple[list[int], list[float]]  # steps and values
SMOOTH_WINDOWS = 60  # points over which a smoothed curve averages, at most


def plot_curves(lines: list[dict[str, Any]], path: Path) -> bool:
    """Draw the journal's lines into a PNG.

    Returns:
        Whether there is a picture: False without two lines, or without matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    if len(lines) < 2:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = _series(lines)
    panels: list[tuple[str, str, dict[str, Curve], bool]] = [
        ("loss by task", "cross-entropy and retriever loss, nats", _named(series, "tasks/"), False),
        ("loss on all tasks", "nats", {n: series[n] for n in ("loss", "validation_loss") if n in series}, False),
        ("retriever", "share", _named(series, "parts/", ("recall", "retriever_precision")), False),
        ("retriever recall", "times chance", _named(series, "parts/", ("recall_over_chance",)), True),
        ("learning rate", "", _alike(_named(series, "rates/")), True),
        ("gradient norm", "", {n: series[n] for n in ("gradient_norm",) if n in series}, True),
        ("speed", "tokens per second", {n: series[n] for n in ("tokens_per_second",) if n in series}, False),
    ]
    shown = [panel for panel in panels if panel[2]]
    figure, axes = pyplot.subplots((len(shown) + 1) // 2, 2, figsize=(12, 3.6 * ((len(shown) + 1) // 2)), squeeze=False)
    for axis, (title, unit, curves, logarithmic) in zip(axes.flat, shown, strict=False):
        _draw(axis, title, unit, curves, logarithmic)
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _series(lines: Iterable[dict[str, Any]]) -> dict[str, Curve]:
    """Name -> steps and values; a task's curve has points only where the task ran."""
    series: dict[str, Curve] = {}
    for line in lines:
        for name, value in scalars(line):
            steps, values = series.setdefault(name, ([], []))
            steps.append(line["step"])
            values.append(value)
    return series


def _named(series: dict[str, Curve], prefix: str, only: tuple[str, ...] | None = None) -> dict[str, Curve]:
    names = sorted(name for name in series if name.startswith(prefix))
    return {n.removeprefix(prefix): series[n] for n in names if only is None or n.removeprefix(prefix) in only}


def _alike(curves: dict[str, Curve]) -> dict[str, Curve]:
    """Equal curves as one, under all their names."""
    names: dict[str, list[str]] = {}
    for name, curve in curves.items():
        names.setdefault(repr(curve), []).append(name)
    return {",\n".join(group): curves[group[0]] for group in names.values()}


def _draw(axis: Any, title: str, unit: str, curves: dict[str, Curve], logarithmic: bool) -> None:
    for name, (steps, values) in curves.items():
        many = len(values) > 2 * SMOOTH_WINDOWS
        (drawn,) = axis.plot(
            steps, values, linewidth=0.6 if many else 1.5, alpha=0.3 if many else 1.0, label=None if many else name
        )
        if len(values) == 1:
            drawn.set_marker("o")
        if many:
            axis.plot(steps, smooth(values), linewidth=1.6, color=drawn.get_color(), label=name)
    everything = [value for _, values in curves.values() for value in values]
    if logarithmic and min(everything) > 0 and max(everything) > 10 * min(everything):
        axis.set_yscale("log")
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("step")
    axis.set_ylabel(unit)
    axis.grid(alpha=0.25)
    if len(curves) > 1 or "\n" in next(iter(curves)):
        axis.legend(fontsize=8)


def smooth(values: list[float]) -> list[float]:
    """Running mean over a `SMOOTH_WINDOWS`-th of the curve, exponential, without the bias of the beginning."""
    keep = 1.0 - SMOOTH_WINDOWS / len(values)
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(mean / weight)
    return result
