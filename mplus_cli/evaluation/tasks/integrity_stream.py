"""Text without end for `integrity`, book after book, and what can be asked about each of its chunks.

Without texts of the user's the books are chronicles, every one new; texts of the user's begin again after the last. A
place in the stream is a book and a chunk of it, so that going on from there does not read what came before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from random import Random
from typing import TYPE_CHECKING

from mplus_cli.data.chronicle import Chronicle, question_prompt
from mplus_cli.data.chunking import chunks
from mplus_cli.evaluation.items import Document
from mplus_cli.evaluation.tasks.chronicle_stream import CONFIGS, Stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOOK_CHUNKS = 128  # of a chronicle: names are unique within it, and the memory it takes while it is written is small
_CHARS_PER_TOKEN = 5  # a first guess; more text is written where it was too low


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and the number of the chunk that tells it whole."""

    prompt: str
    reference: str
    chunk: int


@dataclass(frozen=True)
class Book:
    """Token ids of the chunks of one text."""

    chunks: Sequence[Sequence[int]]

    def question(self, chunk: int) -> Asked | None:
        """A question about what chunk `chunk` tells; None where there is none."""
        return None


@dataclass(frozen=True)
class ChronicleBook(Book):
    """A chronicle with names of the test space."""

    seed: int
    stream: Stream

    @classmethod
    def write(cls, seed: int, tokenizer: PreTrainedTokenizerBase, size: int, count: int) -> ChronicleBook:
        """One with `count` chunks of `size` tokens."""
        chars = (count + 1) * size * _CHARS_PER_TOKEN
        while True:
            chronicle = Chronicle.generate(seed, CONFIGS["facts"], min_chars=chars, split="test")
            found = list(islice(chunks(chronicle.text, tokenizer, size), count + 1))
            if len(found) > count:  # the last chunks of a text are of other lengths
                pieces = tuple(chronicle.text[chunk.start : chunk.end] for chunk in found[:count])
                return cls(tuple(chunk.ids for chunk in found[:count]), seed, Stream(chronicle, pieces))
            chars *= 2

    @cached_property
    def facts(self) -> tuple[Asked, ...]:
        """A question about every fact that is told within one chunk, in the order of the text."""
        told = self.stream.told("facts", Random(self.seed))
        return tuple(
            Asked(question_prompt(one.question), one.answer, one.pieces[0]) for one in told if one.part == "facts"
        )

    @cached_property
    def _by_chunk(self) -> dict[int, list[Asked]]:
        found: dict[int, list[Asked]] = {}
        for fact in self.facts:
            found.setdefault(fact.chunk, []).append(fact)
        return found

    def question(self, chunk: int) -> Asked | None:
        """See `Book.question`."""
        told = self._by_chunk.get(chunk)
        return Random(f"{self.seed}/{chunk}").choice(told) if told else None


@dataclass(frozen=True)
class Place:
    """Chunk `chunk` of book `book` is the next one to be written."""

    book: int = 0
    chunk: int = 0


class Endless:
    """The stream of one item.

    Args:
        seed: of the chronicles.
        texts: of the user's; none for chronicles.
        size: tokens of a chunk.
        shortest: texts with fewer tokens are left out: such a write would be made of the one before it.
    """

    def __init__(
        self, seed: int, texts: Sequence[Document], tokenizer: PreTrainedTokenizerBase, size: int, shortest: int
    ) -> None:
        self.seed, self.texts, self.tokenizer, self.size, self.shortest = seed, texts, tokenizer, size, shortest

    def walk(self, place: Place) -> Iterator[tuple[Book, Place]]:
        """Chunk after chunk from a place on: the book it is in, and its place."""
        for number in count(place.book):
            book = self.book(number)
            for chunk in range(place.chunk if number == place.book else 0, len(book.chunks)):
                yield book, Place(number, chunk)

    def book(self, number: int) -> Book:
        """Book `number`; of the user's texts all but the first time round are repeated ones."""
        if not self.texts:
            return ChronicleBook.write(numbered(self.seed, number), self.tokenizer, self.size, BOOK_CHUNKS)
        found = [chunk.ids for chunk in chunks(self.texts[number % len(self.texts)].text, self.tokenizer, self.size)]
        return Book(found if sum(map(len, found)) >= self.shortest else [])

    def passes(self, place: Place) -> int:
        """How many times the stream has begun the user's texts; 0 for chronicles, which are never repeated."""
        return 1 + place.book // len(self.texts) if self.texts else 0


def numbered(seed: int, *names: object) -> int:
    """A seed of its own for everything that is named differently."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")
