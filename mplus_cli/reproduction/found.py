"""Our numbers, in folders of results of `mplus eval` and `mplus profile`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.report import score_text
from mplus_cli.evaluation.runs import find_pairs
from mplus_cli.evaluation.scoring import score_all
from mplus_cli.evaluation.task import SystemResults
from mplus_cli.reproduction.entry import Cost, Score

_RUN, _CELLS = "run.json", "cells.jsonl"


@dataclass(frozen=True)
class Ours:
    """One of our numbers for a published one.

    Attributes:
        text: with its interval and n, where there is one; model: what it is of.
        source: which run it is of.
    """

    number: float
    text: str
    model: str
    source: str


@dataclass(frozen=True)
class Profile:
    """A folder of `mplus profile`."""

    folder: Path
    model: str
    machine: str
    cells: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """Everything in some folders."""

    scored: Sequence[SystemResults] = ()
    profiles: Sequence[Profile] = ()

    def numbers(self, place: Score | Cost | None) -> list[Ours]:
        """All of ours that are to be compared with a published number."""
        if isinstance(place, Score):
            return [one for results in self.scored if (one := _score(results, place)) is not None]
        if isinstance(place, Cost):
            return [one for profile in self.profiles for one in _costs(profile, place)]
        return []


def find(folders: Sequence[Path], warn: Callable[[str], None]) -> Found:
    """What is in folders, and in folders in them.

    Raises:
        UsageError: one is missing, or holds no results.
    """
    scored: list[SystemResults] = []
    profiles: list[Profile] = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--results {folder} is no folder")
        measured = [_profile(path.parent) for path in sorted(folder.rglob(_CELLS))]
        taken = {profile.folder / _RUN for profile in measured}
        evaluated = any(path not in taken for path in folder.rglob(_RUN))
        if not evaluated and not measured:
            raise UsageError(f"--results {folder} holds no results", "mplus eval or mplus profile makes them")
        if evaluated:
            pairs = [pair for pair in find_pairs([folder]) if pair.path / _RUN not in taken]
            scored += [one for _, results in score_all(pairs, warn) for one in results]
        profiles += measured
    return Found(scored, profiles)


def _profile(folder: Path) -> Profile:
    try:
        run = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        cells = [json.loads(line) for line in (folder / _CELLS).read_text(encoding="utf-8").splitlines()]
        machine = run["sessions"][-1]["machine"]
        gpus = [gpu["name"] if isinstance(gpu, dict) else str(gpu) for gpu in machine.get("gpus") or ()]
        return Profile(folder, str(run["model"]["name"]), gpus[0] if gpus else str(machine.get("processor")), cells)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"{folder} is damaged: {error!r}", "profile again into another --out") from error


def _score(one: SystemResults, place: Score) -> Ours | None:
    settings, model = one.results["settings"], str(one.results["model"]["name"])
    task, system = _name(settings["task"]), _name(settings["system"])
    source = f"{model} {settings['task']} {settings['system']} {settings['items_sha256']}"
    if (task, system) != (place.task, place.system) or (place.model and not model.endswith(place.model)):
        return None
    if place.length is not None and settings["length"] != place.length:
        return None
    if any(settings["task_options"].get(key) != value for key, value in place.options.items()):
        return None
    if place.sets:
        from mplus_cli.evaluation.tasks.longbench import mean_of_sets  # brings torch

        mean = mean_of_sets(one, place.metric)
        return None if mean is None else Ours(mean * place.factor, f"{mean * place.factor:.2f}", _short(model), source)
    scores = one.results["scores"]
    if place.by:
        groups = [group["scores"] for group in one.results["groups"] if group["by"] == dict(place.by)]
        scores = groups[0] if groups else {}
    score = scores.get(place.metric)
    if score is None or score["mean"] is None:
        return None
    text = score_text(score) if place.factor == 1 else _scaled(score, place.factor)
    return Ours(score["mean"] * place.factor, f"{text}, n {score['n']:,}", _short(model), source)


def _scaled(score: Mapping[str, Any], factor: float) -> str:
    """A score in per cent, as the papers print it, with its interval."""
    mean, low, high = (None if score[key] is None else score[key] * factor for key in ("mean", "low", "high"))
    return f"{mean:.2f}" if low is None else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _costs(profile: Profile, place: Cost) -> list[Ours]:
    if place.model is not None and place.model not in profile.model:
        return []
    found = []
    for cell in profile.cells:
        label = cell["system"].replace(":offload=true", " --offload")
        if label != place.system or cell["length"] != place.length or cell["status"] != "ok":
            continue
        memory = place.what == "memory"
        number = cell["peak_bytes"] / 2**20 if memory else cell["flops"]["total"]
        found.append(Ours(number, f"{number:,.0f}" if memory else f"{number:.2e}", profile.model, str(profile.folder)))
    return found


def _name(label: str) -> str:
    """Of a task or system, from its label."""
    return label.partition(":")[0]


def _short(model: str) -> str:
    """A model's name without the folders of this machine, but for runs of training."""
    path = Path(model)
    return "/".join(path.parts[-2:]) if path.is_absolute() else model
