"""The main characters of a book: person names found by spaCy, aliases merged by a stated rule, the most mentioned kept.

The rule, in the order in which it is applied:

1. A mention is a PERSON entity with the titles in front of it. Line breaks, possessives and capitals of headings are
   undone; "Mr." and "Mr" are one.
2. Full names (two words or more) with the same first and last word are one person ("Elizabeth Bennet", "Miss
   Elizabeth Bennet").
3. A given name alone, with or without a title that goes with given names ("Elizabeth", "Lady Catherine"), joins the
   most mentioned person whose full name begins with it.
4. A family name alone ("Darcy", "Mr. Darcy", "Miss Bennet") joins the most mentioned person whose name ends in it,
   titled ones first. After Mr, Mrs, Dr and military ranks a single word is always a family name. A Mrs joins only a
   woman who is known to be one and the only one of that name: mothers are not to become their daughters.
5. Nobody joins a person of the other sex, nor a Miss a Mrs. Titles tell; without one, the pronouns do that follow the
   mentions (at least three, two thirds of them one way). So "Mr. Bennet" and "Mrs. Bennet" stay apart from Elizabeth.
6. What joins nobody is a person of its own.

Nicknames ("Lizzy") are not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mplus_cli.data.event_qa.mentions import Mentions, find_mentions
from mplus_cli.data.event_qa.names import (
    FAMILY_NAME_FOLLOWS,
    FEMALE,
    MALE,
    MARRIED,
    TITLES,
    UNMARRIED,
    plain_title,
)

if TYPE_CHECKING:
    from spacy.language import Language


@dataclass(frozen=True)
class Character:
    """A person: the name to use, all forms with their mentions (most mentioned first), and the mentions together."""

    name: str
    aliases: dict[str, int]
    mentions: int


@dataclass
class _Form:
    """A form of a name taken apart: `Miss Elizabeth Bennet` -> titles (miss,), words (Elizabeth, Bennet)."""

    text: str
    titles: tuple[str, ...]
    words: tuple[str, ...]
    mentions: Mentions

    @property
    def sex(self) -> str | None:
        if any(title in MALE for title in self.titles):
            return "he"
        return "she" if any(title in FEMALE | MARRIED | UNMARRIED for title in self.titles) else None

    @property
    def marriage(self) -> str | None:
        if any(title in MARRIED for title in self.titles):
            return "married"
        return "unmarried" if any(title in UNMARRIED for title in self.titles) else None


@dataclass
class _Person:
    forms: list[_Form] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(form.mentions.count for form in self.forms)

    @property
    def full(self) -> tuple[str, ...]:
        """The words of the longest form: what given and family names are looked up in."""
        return max((form.words for form in self.forms), key=len)

    def is_named(self, place: int, word: str) -> bool:
        return len(self.full) > (1 if place == 0 else 0) and self.full[place].casefold() == word.casefold()

    def may_be(self, form: _Form) -> bool:
        """Rule 5."""
        sexes = {_sex(self.forms), _sex([form])} - {None}
        marriages = {other.marriage for other in [*self.forms, form]} - {None}
        return len(sexes) < 2 and len(marriages) < 2


def find_characters(
    pipeline: Language,
    text: str,
    most: int = 10,
    processes: int = 1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Character]:
    """The `most` most mentioned persons of a book; equal counts in the order of their names.

    Args:
        on_progress: told how many characters of the text are read.
    """
    return merge_aliases(find_mentions(pipeline, text, processes, on_progress))[:most]


def merge_aliases(mentions: Mapping[str, Mentions]) -> list[Character]:
    """Rules 2 to 6: forms of names with their mentions -> persons, the most mentioned first."""
    forms = [_parse(text, counted) for text, counted in mentions.items()]
    forms.sort(key=lambda form: (-form.mentions.count, form.text))
    persons: list[_Person] = []
    full_names = [form for form in forms if len(form.words) > 1]
    single = [form for form in forms if len(form.words) == 1]
    for form in full_names:
        same = [p for p in persons if p.is_named(0, form.words[0]) and p.is_named(-1, form.words[-1])]
        _join(persons, same, form)
    rest = []
    for form in single:  # given names, before family names: they decide who is mentioned most
        given = [] if set(form.titles) & FAMILY_NAME_FOLLOWS else [p for p in persons if p.is_named(0, form.words[0])]
        if any(person.may_be(form) for person in given):
            _join(persons, given, form)
        else:
            rest.append(form)
    for form in sorted(rest, key=lambda form: not form.titles):  # titled ones first; stable, so by mentions
        family = [person for person in persons if person.is_named(-1, form.words[0])]
        if form.marriage == "married":
            women = [person for person in family if _sex(person.forms) == "she"]
            family = women if len(women) == 1 else []
        _join(persons, family, form)
    found = [_character(person) for person in persons]
    return sorted(found, key=lambda character: (-character.mentions, character.name))


def _join(persons: list[_Person], candidates: Iterable[_Person], form: _Form) -> None:
    """Give a form to the most mentioned candidate it may belong to, or open a person."""
    possible = [person for person in candidates if person.may_be(form)]
    if possible:
        max(possible, key=lambda person: person.count).forms.append(form)
    else:
        persons.append(_Person([form]))


def _character(person: _Person) -> Character:
    forms = sorted(person.forms, key=lambda form: (-form.mentions.count, form.text))
    full = [form for form in forms if len(form.words) > 1 and not form.titles]
    return Character((full or forms)[0].text, {form.text: form.mentions.count for form in forms}, person.count)


def _parse(text: str, mentions: Mentions) -> _Form:
    words = text.split()
    titles = tuple(plain_title(word) for word in words if plain_title(word) in TITLES)
    return _Form(text, titles, tuple(word for word in words if plain_title(word) not in TITLES), mentions)


def _sex(forms: Iterable[_Form]) -> str | None:
    forms = list(forms)
    told = next((form.sex for form in forms if form.sex), None)
    he, she = sum(form.mentions.he for form in forms), sum(form.mentions.she for form in forms)
    if told or he + she < 3 or 3 * max(he, she) < 2 * (he + she):
        return told
    return "he" if he > she else "she"
