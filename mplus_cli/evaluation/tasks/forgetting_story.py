"""The text of `forgetting`: writes of a chronicle, in which some people's facts are told and contradicted on schedule.

Every document fills one write. First come as many as fill short-term memory, so that random dropping is at work from
the first telling on. People are invented, with names that no training has seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from mplus_cli.core.loading import encode
from mplus_cli.data.chronicle import ChronicleConfig, World, sample_passage
from mplus_cli.data.chronicle.kinds import KINDS, MOVE_WORDINGS
from mplus_cli.data.chronicle.prose import Page
from mplus_cli.data.chronicle.world import Person
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.drop_rule import DropRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Subject = Literal["home", "trade", "food", "instrument"]
CHANGED: dict[str, tuple[str, ...]] = {
    "home": MOVE_WORDINGS,
    "trade": (
        "{n} has changed {p} trade and works as a {v} now.",
        "{n} has given up the old trade and is a {v} now.",
    ),
    "food": (
        "{n} has tired of the old dish and likes {v} best now.",
        "The favourite food of {n} is {v} now.",
    ),
    "instrument": (
        "{n} has sold the old instrument and plays the {v} now.",
        "The instrument of {n} is the {v} now.",
    ),
}
_LEAST_CHARS = 90  # a passage that is worth writing
_CHARS_PER_TOKEN = 4.0  # a first guess; lowered where a passage does not fit


@dataclass(frozen=True)
class Course:
    """When things are told, in writes.

    Attributes:
        gaps: from a telling to the one that contradicts it; sinces: from a telling to a question about it.
        counts: how often a fact is contradicted; people: facts for every gap and count.
        warm: writes before the first telling; total: all of them.
    """

    gaps: tuple[int, ...]
    sinces: tuple[int, ...]
    counts: tuple[int, ...]
    people: int
    warm: int

    @classmethod
    def fitting(
        cls,
        rule: DropRule,
        gaps: Sequence[int],
        sinces: Sequence[int],
        counts: Sequence[int],
        people: int,
        most: int | None,
    ) -> Course:
        """The largest part of these gaps and times that `most` writes have room for.

        Raises:
            UsageError: they have room for none.
        """
        warm = math.ceil(rule.size / rule.write)
        own, times, often = sorted(set(gaps)), sorted(set(sinces)), tuple(sorted(set(counts)))
        while True:
            made = cls(tuple(own), tuple(times), often, people, warm)
            if most is None or made.total <= most:
                return made
            if len(own) > 1 and (often[-1] * own[-1] >= times[-1] or len(times) == 1):
                own.pop()
            elif len(times) > 1:
                times.pop()
            else:
                raise UsageError(
                    f"forgetting: {most} writes are too few for {made.total}, of which {warm} fill short-term memory",
                    "give a larger --length, or smaller gaps, sinces, contradictions or people",
                )

    @property
    def facts(self) -> int:
        return len(self.gaps) * len(self.counts) * self.people

    @property
    def total(self) -> int:
        return self.warm + self.facts + self.counts[-1] * self.gaps[-1] + self.sinces[-1]

    def tellings(self, rng: Random) -> list[tuple[int, tuple[int, ...]]]:
        """Gap and writes of the tellings of every fact, as few in the same write as can be."""
        load: Counter[int] = Counter()
        found = []
        wanted = [(gap, count) for gap in reversed(self.gaps) for count in self.counts for _ in range(self.people)]
        for gap, count in wanted:
            last = self.total - self.sinces[-1] - count * gap
            starts = rng.sample(range(self.warm, last), last - self.warm)
            free = [tuple(range(start, start + count * gap + 1, gap)) for start in starts]
            told = min(free, key=lambda writes: max(load[write] for write in writes))
            load.update(told)
            found.append((gap, told))
        return found


@dataclass(frozen=True)
class Fact:
    """Something about somebody that changes.

    Attributes:
        person, kind: whose and what.
        gap: writes from one telling to the next.
        told: number of the write of each telling; values: what is true from then on.
    """

    person: Person
    kind: Subject
    gap: int
    told: tuple[int, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    """Documents of one write each, and the facts in them."""

    documents: tuple[str, ...]
    facts: tuple[Fact, ...]


def write_story(
    course: Course,
    kinds: Sequence[Subject],
    plain: bool,
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    seed: int,
) -> Story:
    """A story of `course.total` documents of at most `size` tokens; a function of its arguments.

    Args:
        plain: contradictions are told like first tellings, and do not say that something has changed.

    Raises:
        UsageError: a write is too short to tell a fact.
    """
    rng = Random(seed)
    world = World(rng, ChronicleConfig(), "test")
    facts = [
        _fact(world, kinds[number % len(kinds)], gap, told) for number, (gap, told) in enumerate(course.tellings(rng))
    ]
    documents = []
    for write in range(course.total):
        told = [(fact, fact.told.index(write)) for fact in facts if write in fact.told]
        sentences = [_sentence(world, fact, number, plain) for fact, number in told]
        documents.append(_document(world, sentences, tokenizer, size))
    return Story(tuple(documents), tuple(facts))


def _fact(world: World, kind: Subject, gap: int, told: Sequence[int]) -> Fact:
    person = world.person()
    options = KINDS[kind].values
    values = [world.new_home(person) for _ in told] if options is None else world.rng.sample(options, len(told))
    return Fact(person, kind, gap, tuple(told), tuple(values))


def _sentence(world: World, fact: Fact, number: int, plain: bool) -> str:
    fact.person.values[fact.kind] = fact.values[number]
    page = Page(world)
    page.tell(fact.person, fact.kind, CHANGED[fact.kind] if number and not plain else None)
    return page.passage().text


def _document(world: World, sentences: Sequence[str], tokenizer: PreTrainedTokenizerBase, size: int) -> str:
    """The sentences, with passages about other people around them as far as a write has room."""
    parts = list(sentences)
    for passage in _passages(world, parts, tokenizer, size):
        parts.insert(int(world.rng.random() * (len(parts) + 1)), passage)
    text = "\n\n".join(parts)
    length = len(encode(tokenizer, text))
    if not 0 < length <= size:
        needed = f"what it has to tell ({length} tokens)" if text else "any passage of a chronicle"
        raise UsageError(
            f"forgetting: a write of {size} tokens is too short for {needed}",
            "a model with a larger chunk_size, or people=1",
        )
    return text


def _passages(world: World, parts: list[str], tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[str]:
    """Passages as long as one fits; `parts`, which they are put into, is what is there already."""
    rate = _CHARS_PER_TOKEN
    while True:
        room = int((size - len(encode(tokenizer, "\n\n".join([*parts, ""])))) * rate)
        if room < _LEAST_CHARS:
            return
        people = 1 if room < 3 * _LEAST_CHARS else world.config.people_per_scene
        passage = sample_passage(world, people, facts_per_person=2, max_chars=room).text
        if not passage:
            return
        if len(encode(tokenizer, "\n\n".join([*parts, passage]))) <= size:
            yield passage
        else:
            rate *= 0.8
