"""The people of a chronicle: who they are and what is true of them. How it is told stands in `prose`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

from mplus_cli.data.chronicle.kinds import ANIMALS, KINDS
from mplus_cli.data.chronicle.names import SPLITS, Namer, Split, pick
from mplus_cli.errors import UsageError

_WORN = 12  # sentences and wordings that are not used again yet
_TRIES = 8


@dataclass(frozen=True)
class ChronicleConfig:
    """How a chronicle is written; every field is a knob of difficulty or of style.

    Attributes:
        kinds: kinds of facts that may occur (keys of `kinds.KINDS`).
        people_per_chapter: new people in each chapter.
        people_per_scene: people told about side by side. All of a scene share their kinds of facts, so that only the
            name tells whose fact is asked for.
        facts_per_person: facts about each, all of different kinds.
        filler: filler sentences per fact, on average; 0 gives bare facts.
        syllables: lengths of names, a selection of 2 and 3.
        family_names: two-word names; otherwise first names only.
        first_name_rate: share of facts that name the person by first name alone, once the paragraph has given the full
            name.
        wordings: how many wordings of each kind are used, the plainest first; None for all.
        question_forms: how many question forms of each kind are used, the plainest first; None for all.
        move_rate: share of people with a known home who move in a later chapter; the later home is the right answer.
        two_passage_rate: questions that need two facts, per fact that allows one.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    people_per_chapter: int = 12
    people_per_scene: int = 3
    facts_per_person: int = 3
    filler: float = 1.0
    syllables: tuple[int, ...] = (2, 3)
    family_names: bool = True
    first_name_rate: float = 0.5
    wordings: int | None = None
    question_forms: int | None = None
    move_rate: float = 0.0
    two_passage_rate: float = 0.0

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise UsageError(
                f"Unknown kinds of facts: {unknown or 'none given'}.", hint=f"Choose from {', '.join(KINDS)}."
            )
        if not 1 <= self.facts_per_person <= len(self.kinds):
            raise UsageError(
                f"facts_per_person is {self.facts_per_person}, but there are {len(self.kinds)} kinds of facts."
            )
        if not 1 <= self.people_per_scene <= min(self.people_per_chapter, 12):
            raise UsageError(
                f"people_per_scene is {self.people_per_scene}; choose 1 to 12, at most people_per_chapter."
            )
        if not self.syllables or not set(self.syllables) <= {2, 3}:
            raise UsageError(f"syllables is {self.syllables}; it must be a selection of 2 and 3.")
        for name in ("first_name_rate", "move_rate", "two_passage_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")
        for name in ("wordings", "question_forms"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1, or None for all.")
        if self.filler < 0:
            raise UsageError(f"filler is {self.filler}; it cannot be negative.")


@dataclass(slots=True)
class Person:
    """Somebody in the chronicle.

    Attributes:
        first, family: the name; family is "" in worlds without family names.
        woman: she or he.
        animal: what the person keeps, told or not.
        values: kind of fact -> value, for what has been decided so far.
        words: fields of the wordings (see `kinds`), with {n} the full name.
    """

    first: str
    family: str
    woman: bool
    animal: str
    values: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s, p, o = ("she", "her", "her") if self.woman else ("he", "his", "him")
        self.words = {
            "n": self.name,
            "f": self.first,
            "a": self.animal,
            "s": s,
            "p": p,
            "o": o,
            "S": s.capitalize(),
            "P": p.capitalize(),
            "k": "",
        }

    @property
    def name(self) -> str:
        """The full name, unique in its world."""
        return f"{self.first} {self.family}" if self.family else self.first


class World:
    """Makes people and decides what is true of them. No two of its people share a full name.

    One world per text: a stream of passages whose questions may reach back to any of its passages must come from one
    world.

    Args:
        rng: source of randomness; the world is a function of its state.
        config: see `ChronicleConfig`.
        split: space of the names, "train" or "test".
    """

    def __init__(self, rng: Random, config: ChronicleConfig | None = None, split: Split = "train") -> None:
        if split not in SPLITS:
            raise UsageError(f"Unknown split {split!r}.", hint="Choose train or test.")
        self.rng = rng
        self.config = config or ChronicleConfig()
        self.split = split
        self.namer = Namer(rng, split, self.config.syllables)
        self._said: deque[str] = deque(maxlen=_WORN)
        self.expected: list[Person] = []  # brothers and sisters who are named already and will appear in later chapters

    def person(self, family: str | None = None) -> Person:
        """Somebody new. `family` fixes the family name."""
        woman = self.rng.random() < 0.5
        role = "woman" if woman else "man"
        if not self.config.family_names:
            family = ""
        first, family = self.namer.full_name(role, family)
        return Person(first, family, woman, pick(self.rng, ANIMALS))

    def cast(self, people: int, facts: int, welcome_expected: bool = True) -> tuple[list[Person], list[str]]:
        """The people of a scene and the kinds of facts that the scene tells of each of them."""
        kinds = self._kinds(facts)
        cast: list[Person] = []
        for _ in range(people):
            cast.append(self.expected.pop(0) if welcome_expected and self.expected else self.person())
        for kind in kinds:
            taken: set[str] = set()
            for person in cast:
                taken.add(self._decide(person, kind, taken))
        return cast, kinds

    def new_home(self, person: Person) -> str:
        """Moves a person and returns the town."""
        person.values["home"] = self.namer.name("town")
        return person.values["home"]

    def fresh(self, options: tuple[str, ...]) -> str | None:
        """One of `options` that has not been used lately, None if none is found in a few tries."""
        for _ in range(_TRIES):
            option = pick(self.rng, options)
            if option not in self._said:
                self._said.append(option)
                return option
        return None

    def _decide(self, person: Person, kind: str, taken: set[str]) -> str:
        """The value of `kind` for `person`: made once, different from those `taken` by others in the scene."""
        if kind in person.values:
            return person.values[kind]
        if kind == "sibling":
            value = self._sibling(person)
        elif kind == "animal":
            value = person.animal = person.words["a"] = self._choose(ANIMALS, taken)
        elif kind == "pet":
            value = self.namer.name("pet")
        else:
            values = KINDS[kind].values
            value = self.namer.name("town") if values is None else self._choose(values, taken)
        person.values[kind] = value
        return value

    def _sibling(self, person: Person) -> str:
        sibling = self.person(person.family)
        person.words["k"] = "sister" if sibling.woman else "brother"
        if self.config.two_passage_rate > 0:
            sibling.values["sibling"] = person.first
            sibling.words["k"] = "sister" if person.woman else "brother"
            self.expected.append(sibling)
        return sibling.first

    def _choose(self, values: tuple[str, ...], taken: set[str]) -> str:
        while True:
            value = pick(self.rng, values)
            if value not in taken:
                return value

    def _kinds(self, count: int) -> list[str]:
        """Kinds of one scene. To name a pet tells its animal too, so those two go together only if they must."""
        left = list(self.config.kinds)
        kinds: list[str] = []
        while len(kinds) < count:
            kind = left.pop(int(self.rng.random() * len(left)))
            rival = {"pet": "animal", "animal": "pet"}.get(kind)
            if rival in left and len(left) > count - len(kinds) - 1:
                left.remove(rival)
            kinds.append(kind)
        return kinds
