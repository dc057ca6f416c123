"""From predictions to results.json. Needs no model and no data: the lines of predictions hold all that metrics need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mplus_cli.errors import UsageError
from mplus_cli.evaluation import bootstrap, predictions
from mplus_cli.evaluation.runs import RESULTS, Pair, finished, write_json
from mplus_cli.evaluation.task import SystemResults, Task, find_task

SHOWN = 50  # ids of missing samples that results.json lists
Sample = dict[str, Any]
Scored = list[tuple[Task, list[SystemResults]]]


def score(pair: Pair) -> tuple[Task, SystemResults, list[predictions.Damage]]:
    """Score the finished samples of one task and system, and write results.json.

    Returns:
        The task, the results, and the lines of predictions that could not be used; their samples count as missing.

    Raises:
        UsageError: the folder's files cannot be read, or its task is not known here.
    """
    run, ids = pair.run(), pair.samples()
    task, _ = find_task(str(run.get("task")))
    found, damaged = finished(pair)
    samples = [found[id] | {"scores": _scores(task, found[id])} for id in ids if id in found]
    results = {
        "task": run["settings"]["task"],
        "system": run["settings"]["system"],
        "metric": next(iter(task.metrics)),
        "metric_version": task.metric_version,
        "expected": len(ids),
        "scored": len(samples),
        "missing": len(ids) - len(samples),
        "missing_samples": [id for id in ids if id not in found][:SHOWN],
        "damaged_lines": len(damaged),
        "scores": aggregate(task, samples),
        "groups": groups(task, samples),
        "bootstrap": bootstrap.METHOD,
        **_conditions(run, samples),
        "settings": run["settings"],
        "model": {key: value for key, value in run["model"].items() if key != "config"},
        "sessions": run["sessions"],
    }
    write_json(pair.path / RESULTS, results)
    label = run["settings"]["system"]
    return task, SystemResults(label, run["system"], samples, results, run), damaged


def score_all(pairs: Sequence[Pair], warn: Callable[[str], None]) -> Scored:
    """Score these pairs; results of one task together.

    Args:
        warn: given a line for everything that makes a score less than it seems.
    """
    tasks: dict[str, tuple[Task, list[SystemResults]]] = {}
    missing = []
    for pair in pairs:
        task, found, damaged = score(pair)
        tasks.setdefault(found.results["task"], (task, []))[1].append(found)
        for damage in damaged:
            warn(f"{damage}; its sample counts as missing")
        if found.results["missing"]:
            counts = f"{found.results['missing']:,} of {found.results['expected']:,}"
            missing.append(f"{found.results['task']} / {found.label} ({counts})")
    if missing:
        warn(f"samples are missing: {', '.join(missing)}; mplus eval --resume --out DIR makes them")
    return list(tasks.values())


def aggregate(task: Task, samples: Sequence[Sample]) -> dict[str, Any]:
    """Metric -> mean, interval, n, items; for harmonic means also `of`, the metrics that are in it."""
    found: dict[str, Any] = {}
    of_metric = {metric: _by_item(samples, metric) for metric in task.metrics}
    for metric, by_item in of_metric.items():
        found[metric] = bootstrap.estimate(by_item, bounded=not task.measures).plain()
        if change := task.transforms.get(metric):
            ends = ("mean", "low", "high")
            found[metric] |= {key: change(found[metric][key]) for key in ends if found[metric][key] is not None}
    for name, parts in task.harmonic.items():
        there = [part for part in parts if of_metric[part]]
        found[name] = bootstrap.harmonic([of_metric[part] for part in there]).plain() | {"of": there}
    return found


def _by_item(samples: Sequence[Sample], metric: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for sample in samples:
        value = sample["scores"][metric]
        if value is not None:
            found.setdefault(sample["item"], []).append(value)
    return found


def groups(task: Task, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Scores for every value of every key of `group_by`, and for every combination of all of them."""
    keys = list(task.group_by)
    combinations = [(key,) for key in keys] + ([tuple(keys)] if len(keys) > 1 else [])
    found = []
    for chosen in combinations:
        parts: dict[tuple, list[Sample]] = {}
        for sample in samples:
            if all(key in sample["metadata"] for key in chosen):
                parts.setdefault(tuple(_hashable(sample["metadata"][key]) for key in chosen), []).append(sample)
        for values in sorted(parts, key=_order):
            by = dict(zip(chosen, values, strict=True))
            found.append({"by": by, "scores": aggregate(task, parts[values])})
    return found


def _scores(task: Task, sample: Sample) -> dict[str, float | None]:
    """Metric -> score of one sample."""
    try:
        found = {name: metric(sample, sample["references"]) for name, metric in task.metrics.items()}
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"sample {sample['id']} lacks what the metrics of {task.name} need: {error!r}",
            hint="it was made by another version of mplus; evaluate again with another --out",
        ) from error
    return {name: None if value is None else float(value) for name, value in found.items()}


def _conditions(run: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """How the answers came about: prompt, truncation, stop rule, time, memory."""
    return {
        "prompt": _prompt(samples),
        "stop_rule": run["stop_rule"],
        "decoding": run["decoding"],
        "max_new_tokens": sorted({sample["max_new_tokens"] for sample in samples}),
        "stopped_by": dict(Counter(sample["stop"] or "unknown" for sample in samples)),
        "truncation": {
            "samples": dict(Counter(sample["truncation"] for sample in samples)),
            "context_tokens": _mean(sample["context_tokens"] for sample in samples),
            "truncated_tokens": _mean(sample["truncated_tokens"] for sample in samples),
            "prompt_tokens": _mean(sample["prompt_tokens"] for sample in samples),
            "most_prompt_tokens": max((sample["prompt_tokens"] for sample in samples), default=0),
        },
        "time": _time(run, samples),
        "peak_memory": {
            kind: max((sample["peak_memory"][kind] for sample in samples), default=0) for kind in ("gpu", "host")
        },
    }


def _prompt(samples: Sequence[Sample]) -> dict[str, Any]:
    """The prompt of the first sample, as an example; every sample's own is in predictions.jsonl."""
    if not samples:
        return {}
    first = samples[0]
    return {"sample": first["id"], "text": first["prompt"], "sha256": first["prompt_sha256"]}


def _time(run: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """Seconds summed over samples (and so over processes), and samples per second of one process."""
    totals = {key: round(sum(s["seconds"].get(key, 0.0) for s in samples), 3) for key in ("remember", "ask", "wall")}
    used = sorted({sample["session"] for sample in samples})
    sessions = [run["sessions"][number] for number in used if number < len(run["sessions"])]
    return {
        "seconds": totals,
        "samples_per_second": round(len(samples) / totals["wall"], 4) if totals["wall"] else None,
        "batch": sorted({session["batch"] for session in sessions}),
        "processes": sorted({session["processes"] for session in sessions}),
    }


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return round(sum(numbers) / len(numbers), 3) if numbers else None


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, (list, dict)) else value


def _order(values: tuple) -> list[tuple]:
    """Numbers by size before words by letters."""
    return [(0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, str(value)) for value in values]
