"""Scores as tables, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplus_cli.console import duration, size
from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import MissingExtraError
from mplus_cli.evaluation.plots import draw
from mplus_cli.evaluation.registry import Row
from mplus_cli.evaluation.runs import find_pairs
from mplus_cli.evaluation.scoring import Scored, score_all
from mplus_cli.evaluation.task import TASKS, SystemResults, Task

NAME = "results.md"
MOST_COLUMNS = 10


@dataclass(frozen=True)
class Table:
    """A table of texts under a title."""

    title: str
    headers: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As GitHub reads it."""
        lines = [self.headers, ["---", *["---:"] * (len(self.headers) - 1)], *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}"

    def text(self, draw: Callable[[list[str], list[list[str]]], str]) -> str:
        """For a terminal, drawn by `console.table`."""
        return f"{self.title}\n{draw(self.headers, self.rows)}"


def tables(task: Task, results: Sequence[SystemResults]) -> list[Table]:
    """Every system's scores, and the first metric by each key of `group_by`."""
    return [_scores(task, results), *(_by(task, results, key) for key in task.group_by if _values(results, key))]


def score_text(score: dict[str, Any] | None) -> str:
    """`0.412 [0.310, 0.514]`; a dash where nothing was scored."""
    if score is None or score["mean"] is None:
        return "-"
    if score["low"] is None:
        return number(score["mean"])
    return f"{number(score['mean'])} [{number(score['low'])}, {number(score['high'])}]"


def number(value: float) -> str:
    """Three decimals, or three significant digits of what is larger or smaller than a share."""
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 10 else f"{value:.3g}"


def finish(folder: Path, warn: Callable[[str], None]) -> tuple[Scored, list[Path], Path]:
    """Score everything in a folder, draw it, and write results.md there.

    Returns:
        The scores, the plots, and the path of results.md.

    Raises:
        UsageError: the folder holds no evaluation.
    """
    pairs = find_pairs([folder])
    scored = score_all(pairs, warn)
    place = {str(pair.run()["settings"]["task"]): pair.path.parent for pair in pairs}
    plots: dict[str, list[Path]] = {}
    for task, results in scored:
        name = results[0].results["task"]
        try:
            plots[name] = draw(task, results, place[name])
        except MissingExtraError as error:
            warn(f"no plots: {error.message}; {error.hint}")
            break
        except Exception as error:  # a picture must not cost the numbers; `mplus eval plot` shows what is wrong
            warn(f"no plot of {name}: {type(error).__name__}: {error}; mplus eval plot {folder} --verbose")
    drawn = [path for paths in plots.values() for path in paths]
    return scored, drawn, write(scored, folder, plots)


def write(scored: Scored, out: Path, plots: Mapping[str, Sequence[Path]]) -> Path:
    """Write results.md into a folder: tables, plots, and the conditions under which the numbers came about."""
    parts = ["# Results of `mplus eval`"]
    for task, results in scored:
        row = TASKS.get(task.name, Row("", ""))
        parts.append(f"## {results[0].results['task']}")
        parts.append(_sentence(row.title) + (f" (M+ paper: {row.paper})." if row.paper else "."))
        parts += [table.markdown() for table in tables(task, results)]
        drawn = [path for path in plots.get(results[0].results["task"], ()) if path.is_relative_to(out)]
        parts += [f"![{path.stem}]({path.relative_to(out).as_posix()})" for path in drawn]
        parts.append(conditions(task, results))
    path = out / NAME
    with atomic_write(path) as file:
        file.write(("\n\n".join(parts) + "\n").encode("utf-8", "replace"))
    return path


def _scores(task: Task, results: Sequence[SystemResults]) -> Table:
    names = [*task.metrics, *task.harmonic]
    headers = ["system", *names, "samples", "items", "samples/s", "peak memory"]
    first = results[0].results["scores"]
    rows = []
    for one in results:
        found = one.results
        peak = found["peak_memory"]["gpu"] or found["peak_memory"]["host"]
        count = f"{found['scored']:,}" + (f" of {found['expected']:,}" if found["missing"] else "")
        items = str(max((score["items"] for score in found["scores"].values()), default=0))
        speed = found["time"]["samples_per_second"]
        scores = [score_text(found["scores"].get(name)) + _parts(task, name, found["scores"]) for name in names]
        rows.append([one.label, *scores, count, items, f"{speed:.3g}" if speed else "-", size(peak) if peak else "-"])
    spread = any(score["low"] is not None for score in first.values())
    return Table(f"{results[0].results['task']}: mean" + (" [95% interval]" if spread else ""), headers, rows)


def _by(task: Task, results: Sequence[SystemResults], key: str) -> Table:
    """The first metric for values of one key; where there are many, some of them."""
    metric = next(iter(task.metrics))
    values = _values(results, key)
    step = -(-(len(values) - 1) // (MOST_COLUMNS - 1)) if len(values) > MOST_COLUMNS else 1
    chosen = values[::step] + ([values[-1]] if (len(values) - 1) % step else [])
    rows = []
    for one in results:
        of = {
            group["by"][key]: group["scores"][metric] for group in one.results["groups"] if list(group["by"]) == [key]
        }
        means = [of[value]["mean"] if value in of else None for value in chosen]
        rows.append([one.label, *("-" if mean is None else number(mean) for mean in means)])
    some = f" ({len(chosen)} of {len(values)} values)" if step > 1 else ""
    headers = [key.replace("_", " "), *(f"{value:,}" if isinstance(value, int) else str(value) for value in chosen)]
    return Table(f"{metric} by {key.replace('_', ' ')}{some}", headers, rows)


def _values(results: Sequence[SystemResults], key: str) -> list[Any]:
    """Values of a key over all systems, in the order of results.json."""
    found: dict[Any, None] = {}
    for one in results:
        for group in one.results["groups"]:
            if list(group["by"]) == [key]:
                found[group["by"][key]] = None
    return list(found)


def _parts(task: Task, name: str, scores: Mapping[str, Any]) -> str:
    """What a harmonic mean is of, where that is not all of its metrics."""
    there, wanted = scores.get(name, {}).get("of", []), task.harmonic.get(name, ())
    return f" (of {', '.join(there)})" if there and len(there) < len(wanted) else ""


def conditions(task: Task, results: Sequence[SystemResults]) -> str:
    """What someone needs to know to repeat or to doubt the numbers."""
    first = results[0].results
    settings, model = first["settings"], first["model"]
    session = first["sessions"][-1]
    given = {key: value for key, value in settings["task_options"].items() if value not in (None, [])}
    options = ", ".join(f"{key} {_list(value) if isinstance(value, list) else value}" for key, value in given.items())
    lines = [
        f"- Model {model['name']} (weights {model['weights_sha256'][:12]}, {model['dtype']}) on {session['device']}.",
        f"- Length {settings['length'] or 'default'}, limit {settings['limit']}, seed {settings['seed']}"
        + (f", {options}." if options else "."),
        f"- {first['decoding'].capitalize()}; {first['stop_rule']} ({_list(first['max_new_tokens'])}).",
        f"- Metrics version {first['metric_version']}; intervals: {first['bootstrap']['method']}.",
    ]
    for name, wanted in task.harmonic.items():
        there = first["scores"][name]["of"]
        missing = [part for part in wanted if part not in there]
        lines.append(f"- {name}: harmonic mean of the means of {_list(there) or 'nothing'}.")
        lines += [f"- Not in this data, so not measured: {_list(missing)}."] if missing else []
    for one in results:
        cut = one.results["truncation"]
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in cut["samples"].items())
        seconds = one.results["time"]["seconds"]["wall"]
        lines.append(f"- {one.label}: truncation {kinds or '-'}; {duration(seconds)} of answering.")
    if not any(one.results["peak_memory"]["gpu"] for one in results):
        lines.append("- Peak memory is of the whole process, what earlier systems of the same run left included.")
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    lines.append(f"- {versions}.")
    if first["prompt"]:
        lines.append(f"\nPrompt of {first['prompt']['sample']} as {results[0].label} reads it:\n")
        lines += ["```text", first["prompt"]["text"].replace("```", "'''"), "```"]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    """With a capital letter, but for words such as bAbI."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].islower() else text


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
