"""The numbers and pictures of `forgetting`: answers by distance, survival against the drop rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mplus_cli.evaluation import bootstrap, plots
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.task import SystemResults
from mplus_cli.evaluation.tasks.survival import curve

ANSWERS = ("new", "old", "neither", "prefers_new", "uncontradicted")
KEYS = ("contradictions", "gap", "since")
_LINES = {"new": "-", "old": "--", "neither": ":"}


def table(results: Sequence[SystemResults]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """System -> `answers`, a row for every number of contradictions, gap and time since; `survival`, one for every
    number of writes since (see `survival.curve`)."""
    return {one.label: {"answers": _answers(one), "survival": survival(one)} for one in results}


def survival(one: SystemResults) -> list[dict[str, Any]]:
    """The survival curve of a system; empty for one without a memory."""
    looked = [sample["extra"] for sample in one.samples if "left" in sample["extra"]]
    rule = next((DropRule(**extra["drop_rule"]) for extra in looked), None)
    return [] if rule is None else curve([row for extra in looked for row in extra["left"]], rule)


def _answers(one: SystemResults) -> list[dict[str, Any]]:
    cells: dict[tuple, list[Any]] = {}
    for sample in one.samples:
        cells.setdefault(tuple(sample["metadata"].get(key) for key in KEYS), []).append(sample)
    rows = []
    for place, samples in sorted(cells.items(), key=lambda cell: [-1 if value is None else value for value in cell[0]]):
        row: dict[str, Any] = dict(zip(KEYS, place, strict=True))
        for metric in ANSWERS:
            by_item: dict[str, list[float]] = {}
            for sample in samples:
                if sample["scores"][metric] is not None:
                    by_item.setdefault(sample["item"], []).append(sample["scores"][metric])
            if by_item:
                row[metric] = bootstrap.estimate(by_item).plain()
        rows.append(row)
    return rows


def draw(results: Sequence[SystemResults], folder: Path) -> list[Path]:
    """`forgetting.png`, and `survival.png` where a system has a memory."""
    drawn = [_draw_answers(results, folder / "forgetting.png")]
    if any(survival(one) for one in results):
        drawn.append(_draw_survival(results, folder / "survival.png"))
    return drawn


def _draw_answers(results: Sequence[SystemResults], path: Path) -> Path:
    """New, old and other answers, by the time since the newest telling and by the distance of the two."""
    figure, axes = plots.new_figure(2, width=5.6)
    labels = ("writes since the newest telling", "writes from a telling to its contradiction")
    for panel, key, label in zip(axes, ("since", "gap"), labels, strict=True):
        plots.draw_curves(
            panel, {one.label: plots.points(one, key, "new") for one in results}, label, "share of answers"
        )
        for which in ("old", "neither"):
            for number, one in enumerate(results):
                points = plots.points(one, key, which)
                colour = plots.COLOURS[number % len(plots.COLOURS)]
                x, y = [point.x for point in points], [point.mean for point in points]
                panel.plot(x, y, color=colour, linestyle=_LINES[which], linewidth=1)
    title = f"forgetting: {_stories(results)}; new (line), old (dashed) and other answers (dotted), 95% intervals"
    figure.suptitle(title, fontsize=11)
    return plots.save(figure, path)


def _stories(results: Sequence[SystemResults]) -> str:
    items = max((one.results["scores"]["new"]["items"] for one in results), default=0)
    return f"{items} stories" if items != 1 else "1 story"


def _draw_survival(results: Sequence[SystemResults], path: Path) -> Path:
    """What is left of a write beside what random dropping should leave, and answers by the same distance."""
    figure, (left, right) = plots.new_figure(2, width=5.6)
    ends: dict[DropRule, int] = {}
    for number, one in enumerate(results):
        rows, colour = survival(one), plots.COLOURS[number % len(plots.COLOURS)]
        if rows:
            _draw_counts(left, rows, one.label, colour, plots.MARKERS[number % len(plots.MARKERS)])
            rule = next(DropRule(**s["extra"]["drop_rule"]) for s in one.samples if "left" in s["extra"])
            ends[rule] = max(ends.get(rule, 0), int(rows[-1]["writes"]))
        curve_points = plots.points(one, "since", "uncontradicted")
        x, y = [point.x for point in curve_points], [point.mean for point in curve_points]
        right.plot(x, y, color=colour, linestyle="--", linewidth=1, label=f"{one.label}, never contradicted")
    for rule, last in ends.items():
        x = [last * step / 200 for step in range(201)]
        label = f"random dropping, theory (N={rule.size:,}, K={rule.write:,})"
        left.plot(x, [rule.survival(place) for place in x], color="#333333", linewidth=1, label=label, zorder=3)
    plots.draw_curves(left, {}, "writes since", "share of a write's memory tokens")
    answered = {one.label: plots.points(one, "since", "new") for one in results}
    plots.draw_curves(right, answered, "writes since the newest telling", "share answered with the newest value")
    for panel in (left, right):
        panel.legend(fontsize=7, framealpha=0.8, edgecolor="none")
    title = f"forgetting: {_stories(results)}; survival of memory tokens, and of what they tell, 95% intervals"
    figure.suptitle(title, fontsize=11)
    return plots.save(figure, path)


def _draw_counts(panel: Any, rows: Sequence[dict[str, Any]], label: str, colour: str, marker: str) -> None:
    """Counted shares as points with a band: in short-term memory, and as a line in either memory where that is more."""
    x = [row["writes"] for row in rows]
    panel.fill_between(x, [row["low"] for row in rows], [row["high"] for row in rows], color=colour, alpha=0.2, lw=0)
    shares = [row["measured"] for row in rows]
    name = f"{label}: in short-term memory"
    panel.plot(x, shares, marker=marker, markersize=3, linestyle="none", color=colour, label=name)
    if any(row["held"] != row["measured"] for row in rows):
        held = [row["held"] for row in rows]
        panel.plot(x, held, linestyle="-.", linewidth=1, color=colour, label=f"{label}: in either memory")
