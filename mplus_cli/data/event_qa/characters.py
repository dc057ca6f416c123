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

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mplus_cli.data.chunking import segments
from mplus_cli.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from spacy.language import Language

DEFAULT_PIPELINE = "en_core_web_sm"
PERSON_LABELS = {"PERSON", "PER"}
SEGMENT_CHARS = 20_000
_NOT_NEEDED = ("tagger", "parser", "senter", "attribute_ruler", "lemmatizer", "morphologizer")
_WINDOW = 15  # tokens after a mention in which a pronoun tells who was meant
_HE, _SHE = {"he", "him", "his", "himself"}, {"she", "her", "hers", "herself"}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MALE = _set("mr mister sir lord master monsieur count prince king duke baron earl marquis don herr father uncle")
_FEMALE = _set("lady ms countess princess queen duchess baroness marchioness dame donna aunt mother")
_MARRIED, _UNMARRIED = _set("mrs madame mme frau"), _set("miss mademoiselle mlle fraulein")
_RANKS = _set("dr doctor captain colonel major general lieutenant sergeant professor prof judge inspector")
TITLES = _MALE | _FEMALE | _MARRIED | _UNMARRIED | _RANKS | {"reverend", "rev", "saint", "st"}
_FAMILY_NAME_FOLLOWS = {"mr", "mister", "mrs"} | _RANKS


@dataclass
class Mentions:
    """How often a form of a name occurs, and how many pronouns of either sex follow it."""

    count: int = 0
    he: int = 0
    she: int = 0


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
        if any(title in _MALE for title in self.titles):
            return "he"
        return "she" if any(title in _FEMALE | _MARRIED | _UNMARRIED for title in self.titles) else None

    @property
    def marriage(self) -> str | None:
        if any(title in _MARRIED for title in self.titles):
            return "married"
        return "unmarried" if any(title in _UNMARRIED for title in self.titles) else None


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


def load_pipeline(name: str = DEFAULT_PIPELINE) -> Language:
    """A spaCy pipeline that recognizes persons, by name or folder.

    Raises:
        MissingExtraError: spaCy or the pipeline is not installed; the hint is the command that installs it.
        UsageError: the pipeline recognizes no entities.
    """
    try:
        import spacy
    except ImportError as error:
        raise MissingExtraError("finding characters needs spaCy", 'pip install "mplus[data]"') from error
    try:
        pipeline = spacy.load(name, exclude=list(_NOT_NEEDED))
    except OSError as error:
        raise MissingExtraError(
            f"the spaCy pipeline {name} is not installed", f"python -m spacy download {name}"
        ) from error
    except ValueError as error:
        raise UsageError(f"{name}: not a spaCy pipeline of this version ({str(error).splitlines()[0]})") from error
    labels = {label for names in pipeline.pipe_labels.values() for label in names}
    if not labels & PERSON_LABELS:
        raise UsageError(f"the spaCy pipeline {name} recognizes no persons", hint=f"--spacy {DEFAULT_PIPELINE}")
    return pipeline


def find_characters(pipeline: Language, text: str, most: int = 10, processes: int = 1) -> list[Character]:
    """The `most` most mentioned persons of a book; equal counts in the order of their names."""
    return merge_aliases(find_mentions(pipeline, text, processes))[:most]


def find_mentions(pipeline: Language, text: str, processes: int = 1) -> dict[str, Mentions]:
    """Forms of person names in a text. The number of processes changes nothing but the time."""
    found: dict[str, Mentions] = {}
    pieces = (_unwrapped(text[start:end]) for start, end in segments(text, SEGMENT_CHARS))
    for document in pipeline.pipe(pieces, batch_size=4, n_process=processes):
        persons = [entity for entity in document.ents if entity.label_ in PERSON_LABELS]
        for number, entity in enumerate(persons):
            start = entity.start
            while start > 0 and document[start - 1].is_title and _title(document[start - 1].text) in TITLES:
                start -= 1
            form = clean_name(document[start : entity.end].text)
            if form is None:
                continue
            mentions = found.setdefault(form, Mentions())
            mentions.count += 1
            last = persons[number + 1].start if number + 1 < len(persons) else len(document)
            following = (token.lower_ for token in document[entity.end : min(entity.end + _WINDOW, last)])
            pronoun = next((word for word in following if word in _HE | _SHE), None)
            mentions.he += pronoun in _HE
            mentions.she += pronoun in _SHE
    return found


def clean_name(text: str) -> str | None:
    """Rule 1 for one mention; None for what is no name."""
    text = re.sub(r"['’]s?$", "", " ".join(text.replace("_", " ").split()).strip(" .,;:!?\"“”‘’'()[]-—"))
    words = [_capital(word) for word in text.split()]
    titles = [word for word in words if _title(word) in TITLES]
    names = [word for word in words if _title(word) not in TITLES]
    if not names or not all(len(name.strip(".")) > 1 or name.endswith(".") for name in names):
        return None
    if not names[0][0].isupper() or not names[-1][0].isupper() or any(char.isdigit() for char in text):
        return None
    return " ".join([*(f"{title.rstrip('.')}." if _title(title) in _DOTTED else title for title in titles), *names])


_DOTTED = {"mr", "mrs", "dr", "prof", "rev", "st", "mme", "mlle"}


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
        given = [] if set(form.titles) & _FAMILY_NAME_FOLLOWS else [p for p in persons if p.is_named(0, form.words[0])]
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
    titles = tuple(_title(word) for word in words if _title(word) in TITLES)
    return _Form(text, titles, tuple(word for word in words if _title(word) not in TITLES), mentions)


def _sex(forms: Iterable[_Form]) -> str | None:
    forms = list(forms)
    told = next((form.sex for form in forms if form.sex), None)
    he, she = sum(form.mentions.he for form in forms), sum(form.mentions.she for form in forms)
    if told or he + she < 3 or 3 * max(he, she) < 2 * (he + she):
        return told
    return "he" if he > she else "she"


def _title(word: str) -> str:
    return word.rstrip(".").casefold()


def _capital(word: str) -> str:
    return word.capitalize() if word.isupper() and len(word) > 2 else word


def _unwrapped(text: str) -> str:
    """Single line breaks as spaces: printed books break lines inside names."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


def pipeline_identity(pipeline: Language) -> dict[str, Any]:
    """What a manifest records of a pipeline."""
    meta = pipeline.meta
    return {
        "name": f"{meta['lang']}_{meta['name']}",
        "version": meta["version"],
        "licence": meta.get("license") or None,
    }
