"""Chronicles of any length, streams of their paragraphs, and short passages for training.

chronicle = Chronicle.generate(seed=7, chapters=20, split="test")
chronicle.text, chronicle.facts, chronicle.questions
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from mplus_cli.data.chronicle.fillers import (
    CHAPTER_CLOSINGS,
    CHAPTER_FRAMES,
    CHAPTER_OPENINGS,
    CHAPTER_SUBJECTS,
    SCENE_FILLERS,
    TITLE_PLACES,
)
from mplus_cli.data.chronicle.kinds import KINDS
from mplus_cli.data.chronicle.names import Split, pick
from mplus_cli.data.chronicle.prose import Fact, Page, Passage
from mplus_cli.data.chronicle.questions import Question
from mplus_cli.data.chronicle.world import ChronicleConfig, Person, World
from mplus_cli.errors import UsageError

_MOVES_WITHIN_CHAPTERS = 6


@dataclass(frozen=True)
class Chronicle:
    """A whole text with everything that can be asked about it.

    Attributes:
        title: first line of the text.
        text: title, chapter headings and paragraphs, separated by blank lines.
        facts: in the order of the text; spans count from the first character of `text`.
        questions: every question of every fact that still holds at the end, then those that need two facts.
    """

    title: str
    text: str
    facts: tuple[Fact, ...]
    questions: tuple[Question, ...]

    @classmethod
    def generate(
        cls,
        seed: int,
        config: ChronicleConfig | None = None,
        *,
        chapters: int | None = None,
        min_chars: int | None = None,
        split: Split = "train",
        on_progress: Callable[[int], None] = lambda length: None,
    ) -> Chronicle:
        """Writes a chronicle of `chapters` chapters, or of as many as it takes to reach `min_chars` characters.

        Args:
            on_progress: told after each chapter how many characters there are.
        """
        if (chapters is None) == (min_chars is None):
            raise UsageError("Give either chapters or min_chars.")
        rng = Random(seed)
        world = World(rng, config, split)
        title = f"A Chronicle of the {pick(rng, TITLE_PLACES)}"
        pieces, length, facts = [title], len(title), []
        for passage in iter_paragraphs(world):
            ended = chapters is not None and passage.chapter > chapters
            if ended or (min_chars is not None and passage.heading and length >= min_chars):
                break
            if passage.heading:
                on_progress(length)
            length += 2
            facts += [replace(fact, start=fact.start + length, end=fact.end + length) for fact in passage.facts]
            pieces += ("\n\n", passage.text)
            length += len(passage.text)
        pieces.append("\n")
        facts = _mark_superseded(facts)
        questions = [Question(text, fact.value, (i,)) for i, fact in _current(facts) for text in fact.questions]
        questions += _two_passage_questions(rng, facts, world.config.two_passage_rate)
        return cls(title, "".join(pieces), tuple(facts), tuple(questions))


def iter_paragraphs(world: World) -> Iterator[Passage]:
    """An endless chronicle, as a stream of headings and scenes in constant memory but for the names given out.

    Yields passages of one or more paragraphs, whose facts have spans in their own text.
    """
    rng, config = world.rng, world.config
    moves: dict[int, list[Person]] = {}
    chapter = 0
    while True:
        chapter += 1
        subject = world.fresh(CHAPTER_SUBJECTS) or CHAPTER_SUBJECTS[0]
        yield Passage(f"Chapter {chapter}. {pick(rng, CHAPTER_FRAMES).format(x=subject)}", (), chapter, heading=True)
        if config.filler > 0:
            page = Page(world, chapter)
            page.filler(CHAPTER_OPENINGS, x=subject)
            page.filler(SCENE_FILLERS)
            page.filler(SCENE_FILLERS)
            yield page.passage()
        if chapter in moves:
            page = Page(world, chapter)
            page.news(moves.pop(chapter))
            yield page.passage()
        scenes = config.people_per_chapter // config.people_per_scene
        welcome = len(world.expected)
        for scene in range(scenes):
            people = config.people_per_chapter * (scene + 1) // scenes - config.people_per_chapter * scene // scenes
            page = Page(world, chapter)
            cast, kinds = world.cast(people, config.facts_per_person, welcome_expected=welcome >= people)
            welcome -= people
            page.scene(cast, kinds)
            yield page.passage()
            if "home" in kinds:
                for person in cast:
                    if rng.random() < config.move_rate:
                        later = chapter + 1 + int(rng.random() * _MOVES_WITHIN_CHAPTERS)
                        moves.setdefault(later, []).append(person)
        if config.filler > 0:
            page = Page(world, chapter)
            page.filler(CHAPTER_CLOSINGS)
            yield page.passage()


def sample_passage(
    world: World,
    people: int | None = None,
    facts_per_person: int | None = None,
    max_chars: int | None = None,
) -> Passage:
    """One scene about new people: what fills one chunk in training.

    Args:
        world: gives out every name once; use one world per stream of passages that questions reach back into.
        people, facts_per_person: default to those of the configuration.
        max_chars: upper bound of the length. Fillers that do not fit are left out first, then facts.
    """
    config = world.config
    cast, kinds = world.cast(people or config.people_per_scene, facts_per_person or config.facts_per_person)
    page = Page(world, max_chars=max_chars)
    page.scene(cast, kinds)
    return page.passage()


def write_sample(
    path: str | Path,
    seed: int,
    config: ChronicleConfig | None = None,
    *,
    chapters: int | None = None,
    min_chars: int | None = None,
    split: Split = "test",
) -> Chronicle:
    """Writes the text of a chronicle to `path` (UTF-8) and returns the chronicle; names are test names by default."""
    chronicle = Chronicle.generate(seed, config, chapters=chapters, min_chars=min_chars, split=split)
    Path(path).write_text(chronicle.text, encoding="utf-8", newline="\n")
    return chronicle


def _mark_superseded(facts: list[Fact]) -> list[Fact]:
    last: dict[tuple[str, str], int] = {}
    for i in range(len(facts) - 1, -1, -1):
        key = (facts[i].kind, facts[i].subject)
        if key in last:
            facts[i] = replace(facts[i], superseded_by=last[key])
        last[key] = i
    return facts


def _current(facts: list[Fact]) -> list[tuple[int, Fact]]:
    return [(i, fact) for i, fact in enumerate(facts) if fact.superseded_by is None]


def _two_passage_questions(rng: Random, facts: list[Fact], rate: float) -> list[Question]:
    """Questions that go through one fact to another: "What is the trade of the person who lives in Velford?"."""
    if rate == 0:
        return []
    current = _current(facts)
    of_person: dict[str, list[int]] = {}
    towns: dict[str, int] = {}
    for i, fact in current:
        of_person.setdefault(fact.subject, []).append(i)
        if fact.kind == "home":
            towns[fact.value] = towns.get(fact.value, 0) + 1
    questions = []
    for i, fact in current:
        if fact.kind == "home" and towns[fact.value] == 1:
            who, subject = f"the person who lives in {fact.value}", fact.subject
        elif fact.kind == "sibling":
            first, _, family = fact.subject.partition(" ")
            who = f"the {'sister' if fact.sister else 'brother'} of {fact.subject}"
            subject = f"{fact.value} {family}".strip()
        else:
            continue
        targets = [j for j in of_person.get(subject, ()) if j != i and facts[j].kind not in ("home", "sibling")]
        if targets and rng.random() < rate:
            target = pick(rng, targets)
            text = KINDS[facts[target].kind].indirect.format(n=who)
            questions.append(Question(text, facts[target].value, (i, target)))
    return questions
