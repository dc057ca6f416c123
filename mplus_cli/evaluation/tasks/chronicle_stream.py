"""A chronicle as an exam reads it: pieces of one write each, and where among them its facts are told."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

from mplus_cli.core.loading import encode
from mplus_cli.data.chronicle import Chronicle, ChronicleConfig, Fact

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIGS = {
    "facts": ChronicleConfig(),
    "updates": ChronicleConfig(move_rate=1.0),
    "two_passages": ChronicleConfig(two_passage_rate=1.0),
}
_SENTENCE_ENDS = (". ", '" ', "? ", "\n")
_CHARS_PER_TOKEN = 5  # a first guess; more text is written where it was too low


@dataclass(frozen=True)
class Told:
    """One thing that can be asked.

    Attributes:
        question, answer: one form of the question, and the right answer from now on.
        pieces: numbers of the pieces that tell it, ascending; it is known when the last has been read.
        part: `facts`, `cut facts` (the sentence begins in the piece before), `updates` or `two passages`.
        gap: pieces between the two facts it needs (updates: since the fact that is no longer true).
        old: the answer that was right before.
        valid_until: number of the piece that makes the answer wrong again, if any.
    """

    question: str
    answer: str
    pieces: tuple[int, ...]
    part: str
    gap: int = 0
    old: str | None = None
    valid_until: int | None = None


@dataclass(frozen=True)
class Stream:
    """The first pieces of a chronicle; joined without anything between, they are its text."""

    chronicle: Chronicle
    pieces: tuple[str, ...]

    @classmethod
    def write(cls, part: str, seed: int, count: int, tokenizer: PreTrainedTokenizerBase, chunk_size: int) -> Stream:
        """A chronicle with names of the test space, `count` pieces of it."""
        chars = count * chunk_size * _CHARS_PER_TOKEN
        while True:
            chronicle = Chronicle.generate(seed, CONFIGS[part], min_chars=chars, split="test")
            pieces = []
            for piece in cut(chronicle.text, tokenizer, chunk_size):
                pieces.append(piece)
                if len(pieces) == count:
                    return cls(chronicle, tuple(pieces))
            chars *= 2

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(len(piece) for piece in self.pieces)]

    def piece_of(self, character: int) -> int:
        """Number of the piece that a character of the text is in; `len(pieces)` for those after all of them."""
        return bisect_right(self._starts, character) - 1

    def told(self, part: str, rng: Random) -> Iterator[Told]:
        """Everything that a stream of this part is asked about, in the order of the text."""
        if part == "facts":
            yield from (self._fact(fact, rng) for fact in self.chronicle.facts if self._known(fact) < len(self.pieces))
        elif part == "updates":
            yield from self._updates(rng)
        else:
            yield from self._two_passages()

    def _known(self, fact: Fact) -> int:
        return self.piece_of(fact.end - 1)

    def _span(self, fact: Fact) -> tuple[int, ...]:
        """The pieces from the beginning of a fact's sentence to the end of its value."""
        text = self.chronicle.text
        begins = max(text.rfind(mark, 0, fact.start) + len(mark) for mark in _SENTENCE_ENDS)
        return tuple(range(self.piece_of(begins), self._known(fact) + 1))

    def _fact(self, fact: Fact, rng: Random) -> Told:
        pieces = self._span(fact)
        return Told(rng.choice(fact.questions), fact.value, pieces, "facts" if len(pieces) == 1 else "cut facts")

    def _updates(self, rng: Random) -> Iterator[Told]:
        facts = self.chronicle.facts
        for before in facts:
            if before.superseded_by is None or self._known(facts[before.superseded_by]) >= len(self.pieces):
                continue
            now = facts[before.superseded_by]
            pieces, later = self._span(now), now.superseded_by
            until = None if later is None else self._known(facts[later])
            gap = self._known(now) - self._known(before)
            yield Told(rng.choice(now.questions), now.value, pieces, "updates", gap, before.value, until)

    def _two_passages(self) -> Iterator[Told]:
        """Questions through one fact to another, told in different pieces."""
        facts = self.chronicle.facts
        for question in self.chronicle.questions:
            if len(question.facts) == 1:
                continue
            first, second = (self._span(facts[index]) for index in question.facts)
            if max(first[-1], second[-1]) < len(self.pieces) and not {*first} & {*second}:
                pieces = tuple(sorted({*first, *second}))
                yield Told(question.text, question.answer, pieces, "two passages", abs(first[-1] - second[-1]))


def cut(text: str, tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[str]:
    """Pieces of at most `size` tokens each, tokenized by itself: a system that chunks by `size` makes one write of it.

    They join up to the text but for a rest of less than one piece.
    """
    start, reach = 0, 8 * size
    while start < len(text):
        window = text[start : start + reach]
        offsets: Sequence[tuple[int, int]] = tokenizer(
            window, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        if len(offsets) <= size:
            if start + reach >= len(text):
                return
            reach *= 2
            continue
        count = size
        piece = window[: offsets[count - 1][1]]
        while len(encode(tokenizer, piece)) > size:  # a token that is cut apart may take more of them
            count -= 1
            piece = window[: offsets[count - 1][1]]
        yield piece
        start += len(piece)
