"""The picture and the numbers of the chronicle exam."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mplus_cli.evaluation import plots
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.metrics import wilson
from mplus_cli.evaluation.task import SystemResults

METRIC = "exact_match"
TITLES = {
    "facts": "facts told in one write",
    "cut facts": "facts cut by a border of writes",
    "updates": "facts updated later (dashed: the old answer)",
    "two passages": "questions that need two passages",
}
PICTURES = {"chronicle.png": ("facts", "cut facts"), "chronicle_harder.png": ("updates", "two passages")}


def table(results: Sequence[SystemResults]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """System -> part -> rows by distance: n, right, exact match with its interval by bootstrap over chronicles, and
    Wilson's, which takes answers about one chronicle as independent."""
    return {one.label: {part: _rows(one, part) for part in _parts([one])} for one in results}


def _rows(one: SystemResults, part: str) -> list[dict[str, Any]]:
    cells: dict[float, list[float]] = defaultdict(list)
    for sample in one.samples:
        score = sample["scores"].get(METRIC)
        if sample["metadata"]["part"] == part and score is not None:
            cells[sample["metadata"]["distance"]].append(score)
    intervals = {point.x: point for point in plots.points(one, "distance", METRIC, {"part": part})}
    rows = []
    for distance, right in sorted(cells.items()):
        low, high = wilson(sum(right), len(right))
        point = intervals.get(float(distance))
        rows.append(
            {
                "distance": distance,
                "n": len(right),
                "right": int(sum(right)),
                METRIC: round(sum(right) / len(right), 4),
                "bootstrap": None if point is None or point.low is None else [round(point.low, 4), _round(point.high)],
                "wilson": [round(low, 4), round(high, 4)],
            }
        )
    return rows


def plot_exam(results: Sequence[SystemResults], folder: Path) -> list[Path]:
    """Exact match by distance in writes, one panel per part: facts in one picture, what is harder in another.

    Facts come with what random dropping alone would leave of them.
    """
    there, drawn = _parts(results), []
    for name, parts in PICTURES.items():
        chosen = [part for part in parts if part in there]
        if not chosen:
            continue
        figure, axes = plots.new_figure(len(chosen), width=5.8)
        for panel, part in zip(axes, chosen, strict=True):
            curves = {one.label: plots.points(one, "distance", METRIC, {"part": part}) for one in results}
            plots.draw_curves(panel, curves, "writes since the fact was told", "exact match")
            if part == "updates":
                _draw_stale(panel, results)
            if part in PICTURES["chronicle.png"]:
                _draw_drop_rule(panel, results, part)
            panel.set_title(TITLES[part], fontsize=10)
            panel.legend(fontsize=7, frameon=False)
        items = max((one.results["scores"][METRIC]["items"] for one in results), default=0)
        figure.suptitle(f"chronicle: {items} chronicles, 95% intervals", fontsize=11)
        drawn.append(plots.save(figure, folder / name))
    return drawn


def _draw_drop_rule(panel: Any, results: Sequence[SystemResults], part: str) -> None:
    """From where the model without long-term memory starts: a_0 times what is left of a write, above closed-book."""
    border = next((one.results["scores"][METRIC]["mean"] for one in results if one.name == "closed-book"), None) or 0.0
    own = [one for one in results if one.name in ("memoryllm", "mplus")]
    for one in sorted(own, key=lambda one: one.name != "memoryllm")[:1]:
        curve = plots.points(one, "distance", METRIC, {"part": part})
        if len(curve) < 2:
            return
        rule, first, last = DropRule.of(one.run["model"]["config"]), curve[0], curve[-1]
        x = [first.x + (last.x - first.x) * (step / 200) ** 3 for step in range(201)]
        y = [rule.accuracy(first.mean, border, place - first.x) for place in x]
        label = f"random dropping, theory (half-life {rule.half_life:.1f})"
        panel.plot(x, y, color="#333333", linestyle=":", linewidth=1.2, label=label)


def _draw_stale(panel: Any, results: Sequence[SystemResults]) -> None:
    for number, one in enumerate(results):
        curve = plots.points(one, "distance", "stale", {"part": "updates"})
        colour = plots.COLOURS[number % len(plots.COLOURS)]
        panel.plot([p.x for p in curve], [p.mean for p in curve], color=colour, linestyle="--", linewidth=1)


def _parts(results: Sequence[SystemResults]) -> list[str]:
    there = {sample["metadata"]["part"] for one in results for sample in one.samples}
    return [part for part in TITLES if part in there]


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
