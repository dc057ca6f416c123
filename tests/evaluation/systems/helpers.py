"""Systems on small models, and items for them: random text for the tiny model, chronicles for the bundled one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache
from random import Random
from typing import Any, ClassVar

import torch

from mplus_cli.data.chronicle.chronicle import Chronicle
from mplus_cli.data.chronicle.questions import question_prompt
from mplus_cli.evaluation.items import Answer, Document, Item, Question
from mplus_cli.evaluation.registry import make_options, parse
from mplus_cli.evaluation.system import SYSTEMS, System, SystemSettings
from mplus_cli.evaluation.task import Task, TaskSettings
from mplus_cli.inference.devices import Placement
from mplus_cli.inference.models import LoadedModel, load_model
from tests.fixtures import byte_tokenizer

MEMORY = ("mplus", "memoryllm", "mplus-attn", "random", "zeros", "noise", "foreign")
TEXT = ("window", "full", "bm25", "closed-book")


class Asking(Task):
    """Prompts as usual; items come from elsewhere."""

    name = "asking"
    metrics: ClassVar = {}
    metric_version = "1"

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        return iter(())


class AskingToTheEnd(Asking):
    stop = "none"


@cache
def bundled() -> LoadedModel:
    """The bundled model."""
    return load_model(None, "cpu", "float32")


def loaded(model: Any) -> LoadedModel:
    """A tiny model with the byte tokenizer."""
    return LoadedModel("tiny", model, byte_tokenizer(), Placement(torch.device("cpu"), torch.float32, "test"))


def system(text: str, on: LoadedModel, **settings: Any) -> System:
    """The system of `name:key=value,...`."""
    spec = parse(text, SYSTEMS, "system")
    cls = SYSTEMS[spec.name].load()
    return cls(on, SystemSettings(make_options(cls.options_class, spec.settings, text), **({"seed": 3} | settings)))


def ask(system: System, items: Sequence[Item], batch: int = 16, task: Task | None = None) -> dict[str, Answer]:
    """All answers by sample id."""
    answers = [
        answer
        for first in range(0, len(items), batch)
        for answer in system.answer(task or Asking(), items[first : first + batch])
    ]
    assert len({answer.sample_id for answer in answers}) == len(answers)
    return {answer.sample_id: answer for answer in answers}


def texts(answers: dict[str, Answer]) -> dict[str, str]:
    """What was generated, by sample id."""
    return {id: answer.raw for id, answer in sorted(answers.items())}


def random_items(count: int, seed: int = 0, documents: int = 6) -> list[Item]:
    """Documents of 20 to 150 letters; questions at different points of different items, two at some."""
    rng, items = Random(seed), []
    for number in range(count):
        told = [Document("".join(rng.choices("abc def\n", k=rng.randint(20, 150)))) for _ in range(documents)]
        points = sorted(rng.sample(range(1, documents + 1), 3))
        questions = [_random_question(rng, f"q{after}", after) for after in points]
        questions += [_random_question(rng, "again", points[-1])] * (number % 2)
        items.append(Item(f"item-{number}", tuple(told), tuple(questions)))
    return items


def _random_question(rng: Random, id: str, after: int) -> Question:
    prompt = "".join(rng.choices("abcdef", k=rng.randint(3, 12)))
    return Question(id, prompt, ("x",), after, 8, options=("ab", "c", "abcd")[: rng.choice((0, 2, 3))])


@cache
def chronicles(count: int, near: int = 1, far: int = 12) -> tuple[Item, ...]:
    """Fresh chronicles in documents of three paragraphs (about 200 tokens), one fact of each asked near and far."""
    return tuple(_chronicle(number, near, far) for number in range(count))


def _chronicle(number: int, near: int, far: int) -> Item:
    told = Chronicle.generate(500 + number, chapters=6, split="test")
    parts = told.text.split("\n\n")
    parts = ["\n\n".join(parts[at : at + 3]) + "\n\n" for at in range(0, len(parts), 3)]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))
    # A fact inside one document, told once: not a home, which may change.
    fact = next(
        fact
        for fact in told.facts[3:]
        if fact.questions and fact.kind != "home" and bisect_right(starts, fact.start) == bisect_right(starts, fact.end)
    )
    at, prompt = bisect_right(starts, fact.start), question_prompt(fact.questions[0])
    questions = tuple(
        Question(name, prompt, (fact.value,), at + after, metadata={"told": at})
        for name, after in (("near", near), ("far", far))
    )
    return Item(f"chronicle-{number}", tuple(map(Document, parts)), questions)


def accuracy(answers: dict[str, Answer], items: Sequence[Item], question: str) -> float:
    """Share of exact answers to the question of this name."""
    right = [answers[f"{item.id}/{question}"].text == item.questions[0].references[0] for item in items]
    return sum(right) / len(right)
