"""A task and a system without a model in them, and runs of them on the tiny model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from mplus_cli.config import Range
from mplus_cli.evaluation import predictions
from mplus_cli.evaluation.items import Answer, Document, Item, Question
from mplus_cli.evaluation.registry import Row
from mplus_cli.evaluation.request import Request
from mplus_cli.evaluation.running import run
from mplus_cli.evaluation.runs import Pair
from mplus_cli.evaluation.system import SYSTEMS, System, memory_seed
from mplus_cli.evaluation.task import TASKS, Task, TaskSettings


@dataclass(frozen=True)
class ParrotOptions:
    words: Annotated[int, Range(low=1)] = 8
    backwards: bool = False


class Parrot(Task):
    """Every item has three documents; after each, its last word is asked for."""

    name = "parrot"
    options_class = ParrotOptions
    metrics: ClassVar = {
        "exact": lambda sample, references: float(sample["text"] in references),
        "length": lambda sample, references: len(sample["text"]) / 100 or None,
    }
    metric_version = "7"
    group_by = ("distance", "kind")
    default_limit = 3

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        order = range(settings.limit)
        for number in reversed(order) if settings.options.backwards else order:
            told = [f"item {number} part {part}" + " word" * settings.options.words for part in range(3)]
            questions = tuple(
                Question(
                    f"q{after}", f"Q{after}:", (f"right-{number}-{after}",), after, 3, metadata={"distance": after}
                )
                for after in (1, 2, 3)
            )
            documents = tuple(Document(text) for text in told)
            yield Item(f"item-{number}", documents, questions, {"kind": "ab"[number % 2]})


class Measured(Parrot):
    """The same as a measuring task."""

    name = "measured"
    measures = True
    metrics: ClassVar = {"after": lambda sample, references: sample["extra"]["after"]}

    def measure(self, system: System, items: Sequence[Item]) -> Iterator[Answer]:
        for item in items:
            for question in item.questions:
                yield Answer(item.id, question.id, extra={"after": question.after * 100})


@dataclass(frozen=True)
class EchoOptions:
    right: Annotated[float, Range(low=0, high=1)] = 0.5
    offload: bool = False


class Echo(System):
    """Right by chance, the same chance whenever the item's memory seed is the same."""

    name = "echo"
    options_class = EchoOptions
    batches: ClassVar[list[list[str]]] = []
    interrupt: ClassVar[Callable[[Question], Any]] = staticmethod(lambda question: None)

    def answer(self, task: Task, items: Sequence[Item]) -> Iterator[Answer]:
        self.batches.append([item.id for item in items])
        for item in items:
            for question in item.questions:
                type(self).interrupt(question)
                seed = memory_seed(self.settings.seed, item.id)
                chance = hashlib.sha256(f"{seed}{question.id}".encode()).digest()[0] / 256
                text = question.references[0] if chance < self.settings.options.right else f"wrong {seed}"
                yield Answer(
                    item.id, question.id, text, text + "\nmore", question.prompt, 3, 50, 0, "none", 2, "line",
                    {"remember": 0.01, "ask": 0.02},
                )  # fmt: skip


class NeedsStore(Echo):
    name = "needs-store"
    needs_long_term = True


@dataclass(frozen=True)
class _Here(Row):
    cls: Any = None

    def load(self) -> Any:
        return self.cls


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> type[Echo]:
    """The task and systems above by name, beside the real ones. Returns `Echo`, fresh."""
    for cls in (Parrot, Measured):
        monkeypatch.setitem(TASKS, cls.name, _Here("", f"the {cls.name} task", cls=cls))
    for system in (Echo, NeedsStore):
        monkeypatch.setitem(SYSTEMS, system.name, _Here("", f"the {system.name} system", cls=system))
    monkeypatch.setattr(Echo, "batches", [])
    return Echo


def evaluate(out: Path, model: Path, *tasks: str, warnings: list[str] | None = None, **changes: Any) -> list[Pair]:
    """Run tasks (default `parrot`) with systems (default `echo`) in this process."""
    settings = {"tasks": tasks or ("parrot",), "systems": ("echo",), "model": str(model), "batch": 2} | changes
    said = [] if warnings is None else warnings
    return run(Request(out=out, **settings), lambda done, of, what: None, said.append, ["mplus", "eval"])


def answers(pair: Pair) -> dict[str, dict[str, Any]]:
    """Samples by id without what differs from run to run: times, memory, session."""
    samples, damaged = predictions.read(predictions.files(pair.path))
    assert damaged == []
    return {
        id: {key: value for key, value in sample.items() if key not in ("seconds", "peak_memory", "session")}
        for id, sample in samples.items()
    }
