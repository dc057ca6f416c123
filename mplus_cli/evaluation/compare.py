"""Results of several runs side by side, with paired differences where they answered the same samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mplus_cli.errors import UsageError
from mplus_cli.evaluation import bootstrap
from mplus_cli.evaluation.registry import did_you_mean
from mplus_cli.evaluation.report import Table, number, score_text
from mplus_cli.evaluation.scoring import Scored
from mplus_cli.evaluation.task import SystemResults, Task

_OF_THE_SYSTEM = {"system", "system_options", "system_sizes", "task"}


@dataclass(frozen=True)
class Comparison:
    """One task's runs beside each other.

    Attributes:
        rows: plain JSON, one per run.
        notes: settings that differ, and what cannot be compared.
    """

    task: str
    table: Table
    rows: list[dict[str, Any]]
    notes: list[str]


def labelled(groups: Sequence[tuple[Path, Scored]]) -> Scored:
    """Results of several folders, those of one task together; a folder's name tells runs of one system apart."""
    tasks: dict[str, tuple[Task, list[tuple[Path, SystemResults]]]] = {}
    for folder, scored in groups:
        for task, results in scored:
            for one in results:
                tasks.setdefault(one.results["task"], (task, []))[1].append((folder, one))
    merged: Scored = []
    for task, members in tasks.values():
        times = Counter(one.label for _, one in members)
        merged.append((task, [_named(one, folder, times[one.label] > 1) for folder, one in members]))
    return merged


def compare(task: Task, results: Sequence[SystemResults], against: str | None = None) -> Comparison:
    """Scores of a task's runs, and how each differs from one of them over the samples both answered.

    Args:
        against: label of the run to compare with; the first by default.

    Raises:
        UsageError: no run has this label.
    """
    base = _find(results, against)
    metric = next(iter(task.metrics))
    reference = _by_item(base, metric)
    rows, notes = [], _differing_settings(results)
    for one in results:
        row: dict[str, Any] = {"run": one.label, "scores": one.results["scores"], "difference": None}
        if one is not base:
            same = _same_questions(base, one)
            if same:
                row["difference"] = bootstrap.difference(
                    reference, _by_item(one, metric, same), not task.measures
                ).plain()
            else:
                notes.append(f"{one.label} and {base.label} share no sample: their scores are of different questions")
        rows.append(row)
    names = [*task.metrics, *task.harmonic]
    headers = ["run", *names, "samples", f"{metric} - {base.label}", "pairs"]
    lines = [
        [
            row["run"],
            *(score_text(row["scores"].get(name)) for name in names),
            f"{row['scores'][metric]['n']:,}",
            _signed(row["difference"]),
            f"{row['difference']['n']:,}" if row["difference"] else "-",
        ]
        for row in rows
    ]
    name = results[0].results["task"]
    return Comparison(name, Table(f"{name}: mean [95% interval], paired differences", headers, lines), rows, notes)


def _named(one: SystemResults, folder: Path, ambiguous: bool) -> SystemResults:
    return replace(one, label=f"{one.label} ({folder.name or folder.resolve().name})") if ambiguous else one


def _find(results: Sequence[SystemResults], label: str | None) -> SystemResults:
    if label is None:
        return results[0]
    for one in results:
        if label in (one.label, one.name):
            return one
    labels = [one.label for one in results]
    raise UsageError(f"--against {label}: there is no such run{did_you_mean(label, labels)}", f"one of {labels}")


def _by_item(one: SystemResults, metric: str, only: set[str] | None = None) -> dict[str, dict[str, float]]:
    """Item -> question -> score."""
    found: dict[str, dict[str, float]] = {}
    for sample in one.samples:
        value = sample["scores"][metric]
        if value is not None and (only is None or sample["id"] in only):
            found.setdefault(sample["item"], {})[sample["question"]] = value
    return found


def _same_questions(first: SystemResults, second: SystemResults) -> set[str]:
    """Ids of samples that both answered: of equal items, or of runs that differ in their limit alone."""
    one, other = first.results["settings"], second.results["settings"]
    if one["items_sha256"] == other["items_sha256"]:
        return {sample["id"] for sample in first.samples} & {sample["id"] for sample in second.samples}
    if any(one[key] != other[key] for key in ("task_options", "length", "seed")):
        return set()
    seen = {sample["id"]: _identity(sample) for sample in first.samples}
    return {sample["id"] for sample in second.samples if seen.get(sample["id"]) == _identity(sample)}


def _identity(sample: Mapping[str, Any]) -> tuple:
    return sample["references"], sample["options"], sample["metadata"], sample["after"]


def _differing_settings(results: Sequence[SystemResults]) -> list[str]:
    """Settings other than the systems' own in which the runs differ."""
    notes = []
    keys = {key for one in results for key in one.results["settings"]} - _OF_THE_SYSTEM
    for key in sorted(keys):
        values = [one.results["settings"].get(key) for one in results]
        if any(value != values[0] for value in values):
            shown = "; ".join(f"{one.label}: {_short(value)}" for one, value in zip(results, values, strict=True))
            notes.append(f"{key} differs ({shown})")
    return notes


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    return value[:12] if isinstance(value, str) else str(value)


def _signed(difference: Mapping[str, Any] | None) -> str:
    if not difference or difference["mean"] is None:
        return "-"
    if difference["low"] is None:
        return f"{_plus(difference['mean'])}"
    return f"{_plus(difference['mean'])} [{_plus(difference['low'])}, {_plus(difference['high'])}]"


def _plus(value: float) -> str:
    return ("+" if value >= 0 else "") + number(value)
