"""Mentions of persons in a book, found by a spaCy pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mplus_cli.data.chunking import segments
from mplus_cli.data.event_qa.names import TITLES, clean_name, plain_title
from mplus_cli.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

DEFAULT_PIPELINE = "en_core_web_sm"
PERSON_LABELS = {"PERSON", "PER"}
SEGMENT_CHARS = 20_000
_NOT_NEEDED = ("tagger", "parser", "senter", "attribute_ruler", "lemmatizer", "morphologizer")
_WINDOW = 15  # tokens after a mention in which a pronoun tells who was meant
_HE, _SHE = {"he", "him", "his", "himself"}, {"she", "her", "hers", "herself"}


@dataclass
class Mentions:
    """How often a form of a name occurs, and how many pronouns of either sex follow it."""

    count: int = 0
    he: int = 0
    she: int = 0


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


def pipeline_identity(pipeline: Language) -> dict[str, Any]:
    """What a manifest records of a pipeline."""
    meta = pipeline.meta
    return {
        "name": f"{meta['lang']}_{meta['name']}",
        "version": meta["version"],
        "licence": meta.get("license") or None,
    }


def find_mentions(
    pipeline: Language, text: str, processes: int = 1, on_progress: Callable[[int], None] = lambda done: None
) -> dict[str, Mentions]:
    """Forms of person names in a text. The number of processes changes nothing but the time.

    Args:
        on_progress: told how many characters are read.
    """
    found: dict[str, Mentions] = {}
    spans = list(segments(text, SEGMENT_CHARS))
    pieces = (_unwrapped(text[start:end]) for start, end in spans)
    for (_, end), document in zip(spans, pipeline.pipe(pieces, batch_size=4, n_process=processes), strict=True):
        _count_mentions(document, found)
        on_progress(end)
    return found


def _count_mentions(document: Doc, found: dict[str, Mentions]) -> None:
    persons = [entity for entity in document.ents if entity.label_ in PERSON_LABELS]
    for number, entity in enumerate(persons):
        start = entity.start
        while start > 0 and document[start - 1].is_title and plain_title(document[start - 1].text) in TITLES:
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


def _unwrapped(text: str) -> str:
    """Single line breaks as spaces: printed books break lines inside names."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)
