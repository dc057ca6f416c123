"""What the tasks about whole books share: settings, parts of a book, the book as an item's documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from mplus_cli.config import Range
from mplus_cli.core.loading import encode
from mplus_cli.evaluation.items import Document
from mplus_cli.evaluation.long_input import KEPT_CHUNKS, LongInput, long_input
from mplus_cli.evaluation.task import TaskSettings

T = TypeVar("T")
PARTS = 5


@dataclass(frozen=True)
class LongBookOptions:
    """Settings of the tasks about whole books.

    Attributes:
        cut: where a book that is longer than `--length` is cut away; without it, books are whole.
        keep: tokens of the end of the book, the question and the answer that a memory system reads and does not write;
            None for four chunks, which are 2,048 tokens in the paper's model.
        questions: most for each book, spread evenly over it; None for all.
    """

    cut: Literal["left", "middle"] = "left"
    keep: Annotated[int, Range(low=0)] | None = None
    questions: Annotated[int, Range(low=1)] | None = None


def read_book(text: str, prompts: Sequence[str], answer: int, settings: TaskSettings) -> LongInput:
    """A book cut and parted so that every one of its questions fits, with an answer of `answer` tokens."""
    options: LongBookOptions = settings.options
    return long_input(
        text,
        max(prompts, key=lambda prompt: len(encode(settings.tokenizer, prompt))),
        answer,
        settings.tokenizer,
        length=settings.length,
        keep=KEPT_CHUNKS * settings.config.chunk_size if options.keep is None else options.keep,
        cut=options.cut,
    )


def documents(book: LongInput, name: str) -> tuple[Document, ...]:
    """What a memory writes of a book."""
    return (Document(book.document, name),) if book.document else ()


def spread(values: Sequence[T], most: int | None) -> list[T]:
    """At most so many of the values, evenly spread."""
    if most is None or len(values) <= most:
        return list(values)
    return [values[place * len(values) // most] for place in range(most)]


def part(share: float) -> float:
    """The middle of the fifth of a book in which a place is; 0 is the first character, 1 the last."""
    return round((min(PARTS - 1, int(share * PARTS)) + 0.5) / PARTS, 3)


def told(book: LongInput, place: int, length: int, chunk_size: int) -> dict[str, float | int | bool]:
    """Where something is told, for metadata: part of the book, distance from the question, whether it was read at all.

    Args:
        place: character of the text that ends what is told; length: characters of the text.
    """
    distance = book.distance(place)
    found: dict[str, float | int | bool] = {"position": part(place / length), "read": distance is not None}
    if distance is not None:
        found |= {"distance_tokens": distance, "distance_writes": distance // chunk_size}
    return found
