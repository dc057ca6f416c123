"""What a user asked for: tasks, systems and settings, checked before anything slow is done."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.registry import Spec, did_you_mean, make_options
from mplus_cli.evaluation.system import System, find_system
from mplus_cli.evaluation.task import Task, find_task

NAME = "request.json"
RUNNING = ("out", "resume", "batch", "device", "processes", "hostfile", "whole_prompts")  # change no answer
DEFAULT_SYSTEM = "mplus"
_PATHS = ("out", "data", "hostfile")


@dataclass(frozen=True)
class Request:
    """One call of `mplus eval`.

    Attributes:
        tasks, systems: `name` or `name:key=value,...`.
        settings: `key=value` for every task that has the key (`--set`).
        model, base_model: folder or hub id; None for the bundled one and its backbone.
        length, limit, data: see `TaskSettings`.
        offload: for every system that can, keep short-term memory and retrieval keys on the host.
        batch: items that are rows of one batch; None for what suits the model.
        processes: that share the samples out on this machine, or on each of the hostfile; None for one.
        whole_prompts: keep prompts whole in predictions.jsonl.
    """

    out: Path
    tasks: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    model: str | None = None
    base_model: str | None = None
    length: int | None = None
    limit: int | None = None
    seed: int = 0
    data: Path | None = None
    offload: bool = False
    batch: int | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    resume: bool = False
    whole_prompts: bool = False
    processes: int | None = None
    hostfile: Path | None = None

    @property
    def resume_command(self) -> str:
        return f"mplus eval --resume --out {shlex.quote(str(self.out))}"

    def save(self, folder: Path | None = None) -> None:
        """Keep the request, so that resuming needs nothing but the folder's name; default: in its own folder."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        plain |= {key: str(value.absolute()) for key, value in plain.items() if isinstance(value, Path)}
        with atomic_write((folder or self.out) / NAME) as file:
            file.write((json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Request:
        """The latest request kept in a folder.

        Raises:
            UsageError: there is none.
        """
        try:
            plain = json.loads((folder / NAME).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UsageError(f"{folder} holds no evaluation to go on with.", "mplus eval TASK... --out DIR") from error
        except ValueError as error:
            raise UsageError(f"{folder / NAME} is damaged: {error}", "Give the tasks and systems again.") from error
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {key: plain[key] for key in plain if key in known}
        for key, value in values.items():
            if isinstance(value, list):
                values[key] = tuple(value)
            elif key in _PATHS and value is not None:
                values[key] = Path(value)
        return cls(**values)


def with_running(stored: Request, given: Request) -> Request:
    """A stored request, run as `given` says.

    Raises:
        UsageError: `given` also says what is to be answered, which the stored request does already.
    """
    plain = Request(given.out)
    extra = [field.name for field in fields(given) if field.name not in RUNNING]
    extra = [name for name in extra if getattr(given, name) != getattr(plain, name)]
    if extra:
        options = ", ".join("--" + {"systems": "system", "settings": "set"}.get(n, n).replace("_", "-") for n in extra)
        raise UsageError(f"{options} without a task", hint="name the tasks, or leave it out to go on as before")
    return replace(stored, **{name: getattr(given, name) for name in RUNNING})


@dataclass(frozen=True)
class AskedTask:
    """A task with its options."""

    spec: Spec
    task: Task
    options: Any
    limit: int


@dataclass(frozen=True)
class AskedSystem:
    """A system with its options; made when the model is loaded."""

    spec: Spec
    cls: type[System]
    options: Any


@dataclass(frozen=True)
class Plan:
    """A checked request."""

    tasks: tuple[AskedTask, ...]
    systems: tuple[AskedSystem, ...]


def make_plan(request: Request) -> Plan:
    """Look up everything that a request names.

    Raises:
        UsageError: unknown tasks, systems or settings, or one of them twice.
    """
    if not request.tasks:
        raise UsageError("no task was named", hint="mplus eval list")
    tasks = [find_task(text) for text in request.tasks]
    systems = [find_system(text) for text in request.systems or (DEFAULT_SYSTEM,)]
    if request.offload:
        systems = _offloaded(systems)
    _refuse_twice("task", [spec for _, spec in tasks])
    _refuse_twice("system", [spec for _, spec in systems])
    _check_settings(request.settings, [task for task, _ in tasks])
    return Plan(
        tuple(_asked_task(request, task, spec) for task, spec in tasks),
        tuple(
            AskedSystem(spec, cls, make_options(cls.options_class, spec.settings, spec.name)) for cls, spec in systems
        ),
    )


def _offloaded(systems: Sequence[tuple[type[System], Spec]]) -> list[tuple[type[System], Spec]]:
    """`offload=true` for every system that has the setting."""
    able = [any(field.name == "offload" for field in fields(cls.options_class)) for cls, _ in systems]
    if not any(able):
        raise UsageError("--offload means nothing to these systems", hint="it is for mplus and memoryllm")
    return [
        (cls, Spec(spec.name, (*spec.settings, "offload=true")) if can else spec)
        for (cls, spec), can in zip(systems, able, strict=True)
    ]


def _asked_task(request: Request, task: Task, spec: Spec) -> AskedTask:
    known = _keys(task)
    shared = [text for text in request.settings if _key(text) in known]
    options: Any = make_options(task.options_class, [*shared, *spec.settings], spec.name)
    return AskedTask(spec, task, options, task.default_limit if request.limit is None else request.limit)


def _check_settings(settings: Sequence[str], tasks: Sequence[Task]) -> None:
    """Every `--set` must mean something to at least one of the tasks."""
    known = {key for task in tasks for key in _keys(task)}
    wrong = [text for text in settings if _key(text) not in known]
    if wrong:
        lines = "; ".join(f"--set {text}: no such key{did_you_mean(_key(text), known)}" for text in wrong)
        keys = "; ".join(f"{task.name}: {', '.join(sorted(_keys(task))) or 'none'}" for task in tasks)
        raise UsageError(lines, hint=f"keys of {keys}")


def _keys(task: Task) -> set[str]:
    return {field.name for field in fields(task.options_class)}


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip().partition(".")[0]


def _refuse_twice(kind: str, specs: Sequence[Spec]) -> None:
    folders = [spec.folder for spec in specs]
    twice = [spec.label for spec in specs if folders.count(spec.folder) > 1]
    if twice:
        raise UsageError(f"{kind} {twice[0]} is named twice")
