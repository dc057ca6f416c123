"""The pictures and the JSON of `memory-report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mplus_cli.evaluation.plots import COLOURS, Point, draw_curves, new_figure, save
from mplus_cli.evaluation.registry import Spec
from mplus_cli.evaluation.task import SystemResults
from mplus_cli.training.disk import write_json

_STORES = {"short": "short-term", "long": "long-term"}
_LISTS = ("survival", "survival_expected", "writes")


def draw(results: SystemResults, folder: Path) -> list[Path]:
    """Write `memory-report-SYSTEM.json`, and as PNG what the tokens are and where they are. Paths of the PNGs."""
    name = f"memory-report-{Spec(results.label).folder}"
    report = summary(results.samples)
    write_json(folder / f"{name}.json", report)
    return [_content(results, report, folder / f"{name}.png"), _places(results, report, folder / f"{name}-places.png")]


def summary(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole report: means over excerpts by layer, words of single tokens, survival of writes."""
    by_layer: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_layer.setdefault(sample["metadata"]["layer"], []).append(sample["extra"])
    layers = []
    for layer, found in sorted(by_layer.items()):
        record: dict[str, Any] = {"layer": layer}
        for key in found[0]:
            values = [one[key] for one in found]
            if key.startswith("words_"):
                record[key] = [word for value in values for word in value]
            elif key not in _LISTS:
                record[key] = _mean(values)
        layers.append(record)
    extras = [sample["extra"] for sample in samples]
    stores = [key for key in extras[0]["survival"] if key in _STORES] if extras else []
    survival = {
        "writes": max((one["writes"] for one in extras), default=0),
        "expected": _mean([one["survival_expected"] for one in extras]),
        **{key: _mean([one["survival"][key] for one in extras]) for key in stores},
        **{f"{key}_by_place": _mean([one["survival"][f"{key}_by_place"] for one in extras]) for key in stores},
    }
    return {"excerpts": len({sample["item"] for sample in samples}), "layers": layers, "survival": survival}


def _mean(values: Sequence[Any]) -> Any:
    """Of numbers, or of lists place by place counted from the end (the newest); None where there is nothing."""
    held = [value for value in values if value is not None]
    if not held:
        return None
    if isinstance(held[0], list):
        longest = max(map(len, held))
        padded = [[None] * (longest - len(value)) + value for value in held]
        return [_mean(column) for column in zip(*padded, strict=True)]
    return round(sum(held) / len(held), 5)


def _content(results: SystemResults, report: Mapping[str, Any], path: Path) -> Path:
    figure, (norms, likeness, words) = new_figure(3, width=5.2, height=4.6)
    _draw(norms, report, {"norm_short": "short-term", "norm_long": "long-term", "norm_text": "ordinary text"}, "norm")
    curves = {
        "own_short": "its own place, short-term",
        "own_long": "its own place, long-term",
        "source_short": "likest place of its chunk",
        "other_short": "likest place of another chunk",
        "to_other_text": "likest place of another chunk, ordinary text",
    }
    _draw(likeness, report, curves, "cosine to ordinary text, centred")
    curves = {
        "reads_short": "own word, memory",
        "reads_text": "own word, ordinary text",
        "predicts_short": "next word, memory",
        "predicts_text": "next word, ordinary text",
        "in_chunk_short": "any word of its chunk, memory",
    }
    _draw(words, report, curves, "share where it is the nearest word")
    figure.suptitle(f"memory-report, {results.label}: what memory tokens are, by layer", fontsize=11)
    return save(figure, path)


def _draw(axes: Any, report: Mapping[str, Any], titles: Mapping[str, str], ylabel: str) -> None:
    """Curves by layer, the legend below."""
    curves = {
        title: [Point(layer["layer"], layer[key]) for layer in report["layers"] if layer.get(key) is not None]
        for key, title in titles.items()
    }
    draw_curves(axes, {title: curve for title, curve in curves.items() if curve}, "layer", ylabel, bounded=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def _places(results: SystemResults, report: Mapping[str, Any], path: Path) -> Path:
    figure, (layers, lives, rank) = new_figure(3, width=5.2, height=4.6)
    grid = [record["own_by_layer_short"] or [] for record in report["layers"]]
    image = layers.imshow(grid, cmap="viridis", vmin=0, origin="lower", aspect="auto")
    figure.colorbar(image, ax=layers, label="cosine at its own place, centred")
    layers.set_xlabel("layer of ordinary text")
    layers.set_ylabel("layer of the memory token")
    for axis in (layers.xaxis, layers.yaxis):
        axis.get_major_locator().set_params(integer=True)
    _draw_survival(lives, report["survival"])
    titles = {"rank_short": "short-term", "rank_long": "long-term", "rank_text": "ordinary text"}
    _draw(rank, report, titles, "dimensions filled (participation ratio)")
    figure.suptitle(f"memory-report, {results.label}: where memory tokens are", fontsize=11)
    return save(figure, path)


def _draw_survival(axes: Any, survival: Mapping[str, Any]) -> None:
    """What is left of a write, by the writes since: where its source stands, counted from the end of the text."""
    ages = range(survival["writes"] - 1, -1, -1)
    for (store, title), colour in zip(_STORES.items(), COLOURS, strict=False):
        if store in survival:
            axes.plot(ages, survival[store], label=title, color=colour)
    axes.plot(ages, survival["expected"], linestyle=":", color="#333333", label="short-term, expected")
    axes.set_xlabel("writes since")
    axes.set_ylabel("share of a write that is left")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
