"""From a checked request to work: the model, every task's items, every system, and the folder of each pair."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.items import Item
from mplus_cli.evaluation.request import AskedSystem, AskedTask, Plan, Request
from mplus_cli.evaluation.runs import Pair, items_sha256, pair_folder, sample_ids
from mplus_cli.evaluation.system import System, SystemSettings
from mplus_cli.evaluation.task import Task, TaskSettings
from mplus_cli.machine import MODEL_PACKAGES, machine, versions

if TYPE_CHECKING:
    from mplus_cli.inference.models import LoadedModel

STOP_RULES = {
    "line": "an answer ends at its first line break after some text, at an end token, or at max_new_tokens",
    "none": "an answer ends at an end token or at max_new_tokens",
}


@dataclass(frozen=True)
class Job:
    """One task for one system.

    Attributes:
        ids: of all samples, in order.
        settings: what decides the answers, as plain JSON.
    """

    task: Task
    system: System
    label: str
    items: Sequence[Item]
    ids: Sequence[str]
    pair: Pair
    order: tuple[int, int]
    settings: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{self.settings['task']} / {self.label}"


def prepare(request: Request, plan: Plan, loaded: LoadedModel) -> list[Job]:
    """Make everything, so that whatever is wrong shows before the first answer.

    Raises:
        UsageError: a system cannot run on this model, a task's data is missing, or a folder was begun otherwise.
    """
    systems = [_system(request, asked, loaded) for asked in plan.systems]
    model = model_facts(loaded)
    jobs = []
    for number, asked in enumerate(plan.tasks):
        items = _items(request, asked, loaded)
        ids, digest = sample_ids(items), items_sha256(items)
        task = {
            "task": asked.spec.label,
            "task_options": asdict(asked.options),
            "length": request.length,
            "limit": asked.limit,
            "seed": request.seed,
            "items_sha256": digest,
        }
        for place, (of, system) in enumerate(zip(plan.systems, systems, strict=True)):
            asked.task.check(system)
            settings = task | {
                "system": of.spec.label,
                "system_options": asdict(of.options),
                "system_sizes": system.describe(),
                "base_model": request.base_model,
                "quantize": request.quantize,
                "model": {key: model[key] for key in ("config_sha256", "weights_sha256", "dtype")},
            }
            pair = pair_folder(request.out, asked.spec.folder, of.spec.folder)
            plain = json.loads(json.dumps(settings))
            jobs.append(Job(asked.task, system, of.spec.label, items, ids, pair, (number, place), plain))
    for job in jobs:
        if job.pair.exists:
            job.pair.check(job.settings)
    return jobs


def begin(request: Request, jobs: Sequence[Job], loaded: LoadedModel, command: Sequence[str]) -> None:
    """Write run.json of every pair, or add a session to it."""
    session = {
        "command": list(command),
        "batch": request.batch,
        "processes": request.processes or 1,
        "device": str(loaded.placement.device),
        "versions": versions(*MODEL_PACKAGES),
        "machine": machine(),
    }
    for job in jobs:
        if not job.pair.exists:
            job.pair.begin(job.settings, _about(job, loaded), job.ids)
        job.pair.add_session(session)


def model_facts(loaded: LoadedModel) -> dict[str, Any]:
    """Name, fingerprint, number format and sizes of the memory."""
    model = loaded.model
    config = json.loads(model.config.to_json_string(use_diff=False))
    return {
        "name": loaded.name,
        **{key: value for key, value in model.fingerprint().items() if key != "name"},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(loaded.placement.dtype).removeprefix("torch."),
        "attention": model.attn_implementation,
        "config": config,
    }


def _about(job: Job, loaded: LoadedModel) -> dict[str, Any]:
    task = job.task
    return {
        "order": list(job.order),
        "task": task.name,
        "system": job.system.name,
        "samples": len(job.ids),
        "items": len(job.items),
        "metrics": list(task.metrics),
        "metric_version": task.metric_version,
        "group_by": list(task.group_by),
        "stop_rule": STOP_RULES[task.stop],
        "decoding": "greedy",
        "model": model_facts(loaded),
    }


def _items(request: Request, asked: AskedTask, loaded: LoadedModel) -> list[Item]:
    settings = TaskSettings(
        tokenizer=loaded.tokenizer,
        config=loaded.model.config,
        options=asked.options,
        length=request.length,
        limit=asked.limit,
        seed=request.seed,
        data=request.data,
    )
    items = list(asked.task.items(settings))
    if not any(item.questions for item in items):
        raise UsageError(f"{asked.spec.label} has no samples with these settings")
    return items


def _system(request: Request, asked: AskedSystem, loaded: LoadedModel) -> System:
    if asked.cls.needs_long_term and not loaded.model.config.has_long_term_memory:
        raise UsageError(
            f"{asked.spec.label} needs long-term memory and a retriever; the model {loaded.name} has none",
            hint="--system memoryllm runs on it",
        )
    settings = SystemSettings(
        options=asked.options,
        seed=request.seed,
        base_model=request.base_model,
        device=request.device,
        dtype=request.dtype,
        batch=request.batch or 1,
    )
    return asked.cls(loaded, settings)
