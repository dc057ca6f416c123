"""The picture and the numbers of `integrity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mplus_cli.evaluation.metrics import wilson
from mplus_cli.evaluation.plots import COLOURS, MARKERS, Point, new_figure, save
from mplus_cli.evaluation.runs import write_json
from mplus_cli.evaluation.task import SystemResults

KINDS = {"newest": "newest write", "fixed": "probe text in a copy"}
LINES = {"newest": "-", "fixed": "--"}


def draw(results: Sequence[SystemResults], folder: Path) -> list[Path]:
    """Write `integrity.json`, and as PNG accuracy, norms and drift against updates."""
    rows = {one.label: table(one) for one in results}
    write_json(folder / "integrity.json", rows)
    figure, (accuracy, norms, drift) = new_figure(3, width=5.6, height=4.6)
    for number, (label, found) in enumerate(rows.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        for kind, title in KINDS.items():
            curve = [Point(row["updates"], *row[kind]["accuracy"]) for row in found if row[kind]["asked"]]
            style: dict[str, Any] = {"color": colour, "linestyle": LINES[kind], "marker": marker}
            _band(accuracy, curve, f"{label}: {title}", **style)
        _band(norms, relative(found, "norm"), f"{label}: short-term", color=colour, marker=marker)
        _band(norms, relative(found, "norm_max"), f"{label}: largest", color=colour, linestyle=":", band=False)
        if found and found[-1]["long_norm"] is not None:
            _band(norms, relative(found, "long_norm", "norm"), f"{label}: long-term", color=colour, linestyle="--")
        for key, line, title in (("shift", "-", "mean, in spreads"), ("spectrum", ":", "spectrum, share that differs")):
            _band(drift, by_layer(found[1:], key), f"{label}: {title}", color=colour, linestyle=line)
    _dress(accuracy, "exact match", (-0.03, 1.03))
    _dress(norms, "norm of memory tokens / mean at the start", (0, None))
    first = min((found[0]["updates"] for found in rows.values() if found), default=0)
    _dress(drift, f"drift of short-term memory since update {first:,}", (0, None))
    _mark_full(accuracy, results)
    figure.suptitle(_title(results), fontsize=11)
    return [save(figure, folder / "integrity.png")]


def table(one: SystemResults) -> list[dict[str, Any]]:
    """A row per number of updates, over all memories: answers with 95% intervals (Wilson), figures by layer."""
    parts: dict[int, list[Mapping[str, Any]]] = {}
    for sample in one.samples:
        parts.setdefault(int(sample["metadata"]["updates"]), []).append(sample["extra"])
    return [{"updates": updates, "memories": len(found), **_row(found)} for updates, found in sorted(parts.items())]


def _row(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for kind in KINDS:
        asked, right = (sum(one[f"{kind}_{key}"] for one in found) for key in ("asked", "right"))
        interval = [round(right / asked, 4), *(round(end, 4) for end in wilson(right, asked))] if asked else None
        row[kind] = {"asked": asked, "right": right, "accuracy": interval}
    for key in ("short_term", "long_term", "passes", "not_finite"):
        row[key] = sum(one[key] for one in found) if key == "not_finite" else found[0][key]
    for key in ("norm", "norm_max", "long_norm", "cosine", "shift", "spectrum", "rank"):
        row[key] = _mean([one.get(key) for one in found])
    layers = zip(*(one["layers"] for one in found), strict=True)
    row["layers"] = [{key: _mean([one[key] for one in layer]) for key in layer[0]} for layer in layers]
    return row


def relative(found: Sequence[Mapping[str, Any]], key: str, to: str = "norm") -> list[Point]:
    """A norm by updates as a multiple of the mean norm of the layer's short-term tokens at the first point.

    Mean over layers; the band goes from the least to the most of them.
    """
    ratios = []
    for row in found:
        pairs = zip(row["layers"], found[0]["layers"], strict=True)
        layers = [{key: _ratio(layer[key], first[to])} for layer, first in pairs]
        ratios.append({"updates": row["updates"], "layers": layers})
    return by_layer(ratios, key)


def by_layer(found: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """A figure by updates: mean over layers, least and most."""
    curve = []
    for row in found:
        held = [layer[key] for layer in row["layers"] if layer.get(key) is not None]
        if held:
            curve.append(Point(row["updates"], sum(held) / len(held), min(held), max(held)))
    return curve


def _band(axes: Any, curve: Sequence[Point], label: str, band: bool = True, **style: Any) -> None:
    if not curve:
        return
    x = [point.x for point in curve]
    axes.plot(x, [point.mean for point in curve], label=label, markersize=4, linewidth=1.4, **style)
    if band:
        low, high = [point.low for point in curve], [point.high for point in curve]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)


def _dress(axes: Any, ylabel: str, limits: tuple[float, float | None]) -> None:
    axes.set_xscale("log")
    first, last = axes.get_xlim()
    axes.xaxis.set_major_formatter(lambda x, _: _count(x))
    few = last < 100 * first  # too few powers of ten to read a place from
    axes.xaxis.set_minor_formatter(lambda x, _: _count(x) if few and f"{x:.0e}"[0] in "25" else "")
    axes.set_ylim(*limits)
    axes.set_xlabel("updates")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def _count(updates: float) -> str:
    return f"{updates:,g}" if updates < 10_000 else f"{updates / 1000:,g}k"


def _mark_full(axes: Any, results: Sequence[SystemResults]) -> None:
    """Where long-term memory is full, and forgets its oldest from then on."""
    for one in results:
        found = table(one)
        most = max((row["long_term"] for row in found), default=0)
        full = next((row["updates"] for row in found if row["long_term"] == most), 0)
        if most and full != found[-1]["updates"]:
            config = one.run["model"]["config"]
            at = (most + config["short_term_size"]) / config["memory_tokens_per_write"]
            axes.axvline(at, color="#8a8a8a", linewidth=0.8)
            axes.annotate(
                "long-term memory full", (at, 0.02), (3, 0), textcoords="offset points", fontsize=7, color="#555555"
            )
            return


def _title(results: Sequence[SystemResults]) -> str:
    samples = [sample for one in results for sample in one.samples]
    text = samples[0]["metadata"]["text"] if samples else ""
    passes = max((sample["extra"]["passes"] for sample in samples), default=0)
    repeated = f", read {passes} times" if passes > 1 else ""
    bad = sum(sample["extra"]["not_finite"] for sample in samples)
    finite = f"{bad:,} memory tokens are not finite" if bad else "all memory tokens finite"
    memories = len({sample["item"] for sample in samples})
    some = f", {memories} memories" if memories > 1 else ""
    asked = sorted({row[kind]["asked"] for one in results for row in table(one) for kind in KINDS} - {0})
    number = " to ".join(f"{count:,}" for count in dict.fromkeys([*asked[:1], *asked[-1:]]))
    answers = f"answers (n = {number} a point) with 95% intervals, " if asked else ""
    return f"integrity: {text}{repeated}{some}; {answers}figures with their range over layers; {finite}"


def _ratio(value: float | None, start: float | None) -> float | None:
    return value / start if value is not None and start else None


def _mean(values: Sequence[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return round(sum(held) / len(held), 6) if held else None
