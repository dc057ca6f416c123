"""Settings for tasks, systems on the tiny model, and results that plots can be drawn from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mplus_cli.evaluation.items import Item
from mplus_cli.evaluation.registry import make_options
from mplus_cli.evaluation.scoring import aggregate, groups
from mplus_cli.evaluation.system import SYSTEMS, System, SystemSettings
from mplus_cli.evaluation.task import SystemResults, Task, TaskSettings
from mplus_cli.inference.devices import Placement
from mplus_cli.inference.models import LoadedModel
from tests.fixtures import byte_tokenizer, tiny_model


def task_settings(task: Task, *options: str, model: Any = None, **given: Any) -> TaskSettings:
    """`TaskSettings` for the tiny model and byte tokenizer; `options` as on the command line."""
    made: Any = make_options(task.options_class, options, task.name)
    config = (model or tiny_model()).config
    return TaskSettings(byte_tokenizer(), config, made, **{"limit": task.default_limit, **given})


def system(name: str, model: Any, *options: str) -> System:
    """A system on a model with the byte tokenizer."""
    cls = SYSTEMS[name].load()
    placement = Placement(torch.device("cpu"), torch.float32, "test")
    settings = SystemSettings(make_options(cls.options_class, options, name), seed=3)
    return cls(LoadedModel("tiny", model, byte_tokenizer(), placement), settings)


def results_of(task: Task, items: Iterable[Item], answers: Mapping[str, Any], name: str, config: Any) -> SystemResults:
    """Results as scoring makes them, from texts (or `extra`) by sample id."""
    samples = []
    for item in items:
        for question in item.questions:
            given = answers[item.sample_id(question)]
            text, extra = (given, {}) if isinstance(given, str) else ("", given)
            sample: dict[str, Any] = {
                "id": item.sample_id(question),
                "item": item.id,
                "text": text,
                "extra": json.loads(json.dumps(extra)),
                "references": list(question.references),
                "metadata": dict(item.metadata) | dict(question.metadata),
            }
            sample["scores"] = {key: metric(sample, question.references) for key, metric in task.metrics.items()}
            samples.append(sample)
    found = {"scores": aggregate(task, samples), "groups": groups(task, samples)}
    run = {"model": {"config": json.loads(config.to_json_string(use_diff=False))}}
    return SystemResults(name, name, samples, found, run)


def is_png(path: Path) -> bool:
    """Whether a file is a picture and not an empty one."""
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000
