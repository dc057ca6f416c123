"""Telling facts: paragraphs about people, made of fact sentences with filler sentences around them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from mplus_cli.data.chronicle.fillers import KIND_FILLERS, PERSON_FILLERS, SCENE_FILLERS
from mplus_cli.data.chronicle.kinds import KINDS, LEADS, MOVE_WORDINGS
from mplus_cli.data.chronicle.names import pick
from mplus_cli.data.chronicle.questions import direct_questions
from mplus_cli.data.chronicle.world import Person, World

# A fact sentence is about 11 to 14 tokens; this many characters are kept free for each fact that is still to be told.
_FACT_CHARS = 64
_FACTS_PER_JOINT_PARAGRAPH = 5
_CHOICE = re.compile(r"\{((?:[^{}]|\{\w\})*\|(?:[^{}]|\{\w\})*)\}")


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is true of somebody, at the place where the text tells it.

    Attributes:
        kind: key of `kinds.KINDS`.
        subject: full name of the person.
        value: the answer, verbatim in the text.
        start, end: character span of the value in the text it belongs to.
        chapter: number of the chapter, from 1 (0 in a passage outside any chronicle).
        questions: every form of the question whose answer is the value.
        sister: for kind "sibling", whether it is a sister; None otherwise.
        superseded_by: index in `Chronicle.facts` of the later fact that replaces this one, if any.
    """

    kind: str
    subject: str
    value: str
    start: int
    end: int
    chapter: int
    questions: tuple[str, ...]
    sister: bool | None = None
    superseded_by: int | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text (one or more paragraphs) with the facts it tells; spans count from its own first character."""

    text: str
    facts: tuple[Fact, ...]
    chapter: int = 0
    heading: bool = False


class Page:
    """Collects the sentences of one passage and keeps the spans of its facts.

    Args:
        world: where randomness and configuration come from.
        chapter: number written into the facts.
        max_chars: no sentence is added that would make the text longer than this.
    """

    def __init__(self, world: World, chapter: int = 0, max_chars: int | None = None) -> None:
        self.world = world
        self.rng = world.rng
        self.chapter = chapter
        self.max_chars = max_chars or 10**9
        self.pieces: list[str] = []
        self.length = 0
        self.facts: list[Fact] = []
        self.gap = ""
        self.facts_to_come = 0
        self.debt = 0.0  # filler sentences due
        self.named: set[str] = set()  # people whose full name the paragraph has given

    def passage(self) -> Passage:
        return Passage("".join(self.pieces), tuple(self.facts), self.chapter)

    def paragraph(self) -> None:
        """Begins a new paragraph."""
        self.gap = "\n\n" if self.pieces else ""
        self.named.clear()

    def scene(self, cast: list[Person], kinds: list[str]) -> None:
        """Tells the facts of `kinds` about everybody in `cast`, person by person or side by side."""
        self.facts_to_come += len(cast) * len(kinds)
        portraits = len(kinds) > 1 and self.rng.random() < 0.5
        if portraits:
            groups = [[(person, kind) for kind in kinds] for person in cast]
        else:
            step = max(1, _FACTS_PER_JOINT_PARAGRAPH // len(cast))
            parts = [kinds[i : i + step] for i in range(0, len(kinds), step)]
            if self.rng.random() < 0.5:
                groups = [[(person, kind) for kind in part for person in cast] for part in parts]
            else:
                groups = [[(person, kind) for person in cast for kind in part] for part in parts]
        for group in groups:
            self.paragraph()
            if self.rng.random() * 2 < self.world.config.filler:
                self.debt -= self.filler(SCENE_FILLERS)
            for person, kind in group:
                self.facts_to_come -= 1
                self.tell(person, kind)
                self.fillers(person, kind)

    def news(self, movers: list[Person]) -> None:
        """Tells of people who have moved to another town."""
        for i, person in enumerate(movers):
            if i % _FACTS_PER_JOINT_PARAGRAPH == 0:
                self.paragraph()
            self.world.new_home(person)
            self.tell(person, "home", MOVE_WORDINGS)
            self.fillers(person, "home")

    def tell(self, person: Person, kind: str, wordings: tuple[str, ...] | None = None) -> bool:
        """Adds the sentence of one fact; False (and no sentence) if it would not fit."""
        rng, config = self.rng, self.world.config
        known = KINDS[kind]
        opens = self.gap != " "
        choices = (wordings or known.wordings)[: config.wordings]
        wording = self.world.fresh(choices) or pick(rng, choices)
        value_first = wording.startswith("{v}")
        if opens and value_first:
            wording, value_first = (wordings or known.wordings)[0], False
        words = person.words
        if person.name in self.named and rng.random() < config.first_name_rate:
            words = {**words, "n": person.first}
        before, after = _halves(wording)
        before, after = before.format_map(words), after.format_map(words)
        # A paragraph never begins with a name: most tokenizers cut a word without a space before it differently.
        if opens or (not value_first and rng.random() < 0.1):
            before = f"{self.world.fresh(LEADS)} {before if wording[0] == '{' else before[0].lower() + before[1:]}"
        value = person.values[kind]
        start = self.length + len(self.gap) + len(before)
        if not self._add(before + value + after):
            return False
        self.named.add(person.name)
        sister = words["k"] == "sister" if kind == "sibling" else None
        questions = direct_questions(kind, person.words, config.question_forms)
        self.facts.append(Fact(kind, person.name, value, start, start + len(value), self.chapter, questions, sister))
        return True

    def fillers(self, person: Person, kind: str) -> None:
        """Adds the filler sentences that are due after a fact of `kind`, most of them about the person."""
        self.debt += self.world.config.filler
        while self.debt > 0 and (self.debt >= 1 or self.rng.random() < self.debt):
            self.debt -= 1
            choice = self.rng.random()
            if choice < 0.4 and self.filler(KIND_FILLERS[kind], person):
                continue
            self.filler(PERSON_FILLERS if choice < 0.8 else SCENE_FILLERS, person)

    def filler(self, templates: tuple[str, ...], person: Person | None = None, **words: str) -> bool:
        """Adds a sentence that carries no fact; False if all are worn out or the sentence would not fit."""
        template = self.world.fresh(templates)
        if template is None:
            return False
        sentence = "".join([part if isinstance(part, str) else pick(self.rng, part) for part in _parts(template)])
        sentence = sentence.format_map(person.words if person else words)
        if self.length + len(sentence) + 2 + self.facts_to_come * _FACT_CHARS > self.max_chars:
            return False
        return self._add(sentence)

    def _add(self, sentence: str) -> bool:
        if self.length + len(self.gap) + len(sentence) > self.max_chars:
            return False
        self.pieces += (self.gap, sentence)
        self.length += len(self.gap) + len(sentence)
        self.gap = " "
        return True


@cache
def _halves(wording: str) -> tuple[str, str]:
    before, _, after = wording.partition("{v}")
    return before, after


@cache
def _parts(template: str) -> tuple[str | tuple[str, ...], ...]:
    """Splits at choices `{a|b {p} c}`; fields such as {f} stay in the literal parts and in the choices."""
    pieces = _CHOICE.split(template)
    return tuple(tuple(piece.split("|")) if i % 2 else piece for i, piece in enumerate(pieces) if piece)
