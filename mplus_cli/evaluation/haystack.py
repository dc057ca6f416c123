"""Text to hide things in: any book, as sentences with their numbers of tokens, and windows of a given length.

    haystack = Haystack(find_book(settings.data, options.book, tokens), settings.tokenizer)
    sentences = haystack.window(Random(7), 4_096)
    text = join(insert(sentences, [(0.5, "The secret number is 7.")]))

Without a file the book is the sample chronicle that the project bundles, continued by its generator.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from mplus_cli.data.sources import TEXT_SUFFIXES, read_source
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PACKAGE = Path(__file__).resolve().parents[1]
_SAMPLE_BOOK = "assets/chronicle.txt"
_CHARS_PER_TOKEN = 6  # of no tokenizer more on running text, so that enough text is made
_MARGIN = 1.25  # of text after a start that is chosen at random, over what a sample of the book says is needed
_SAMPLE = 1 << 15  # characters
_BATCH = 256  # sentences tokenized at a time
_CONTINUATION_SEED = 88_200_007
_SENTENCE_END = re.compile(r"""[.!?…]+["”’')\]]*(?=\s+["“‘'(\[_]*[A-Z0-9])|\S(?=[ \t]*\n[ \t]*\n)""")
_ABBREVIATION = re.compile(
    r"(?:^|[\s\"“‘'(\[])(?:Mr|Mrs|Ms|Dr|St|Mme|Mlle|Messrs|Capt|Col|Gen|Prof|Rev|No|vol|[A-HJ-Z])$"
)


@dataclass(frozen=True)
class Book:
    """A text and what results call it."""

    name: str
    text: str


@dataclass(frozen=True)
class Sentence:
    """A sentence with the white space before it.

    Attributes:
        tokens: that it has on its own.
        number: of the sentence in its book; None for one that was inserted.
    """

    text: str
    tokens: int
    number: int | None = None


def find_book(data: Path | None, book: str | None, tokens: int) -> Book:
    """The book a task reads: the one named, else one of the folder or file given as data, else the bundled one.

    Args:
        data: `TaskSettings.data`. Of a folder the longest text in `books` (or in itself) is taken.
        book: a file, as named from here, from the data folder or from its `books`.
        tokens: the longest window wanted; the bundled book is made long enough for it.

    Raises:
        UsageError: there is no such file, or it is no text.
    """
    if book is not None:
        folder = data_folder(data)
        places = [Path(book), folder / book, folder / "books" / book]
        return _read(next((place for place in places if place.is_file()), places[0]))
    if data is not None and data.is_file() and _is_text(data):
        return _read(data)
    if data is not None and data.is_dir():
        files = [*data.glob("books/*.txt"), *data.glob("books/*.txt.gz")]
        files = files or [*data.glob("*.txt"), *data.glob("*.txt.gz")]
        if files:
            return _read(max(files, key=lambda file: (file.stat().st_size, file.name)))
    return _bundled(-(-tokens * _CHARS_PER_TOKEN // _SAMPLE))


def _is_text(path: Path) -> bool:
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower() in TEXT_SUFFIXES


@lru_cache(maxsize=4)
def _read(path: Path) -> Book:
    source = read_source(str(path))
    return Book(path.name, source.text)


@lru_cache(maxsize=2)
def _bundled(parts: int) -> Book:
    """The bundled sample book, continued to at least `parts` times `_SAMPLE` characters."""
    from mplus_cli.data.chronicle import Chronicle

    held = [place / _SAMPLE_BOOK for place in (_PACKAGE, _PACKAGE.parent) if (place / _SAMPLE_BOOK).is_file()]
    text = held[0].read_text(encoding="utf-8") if held else ""
    missing = parts * _SAMPLE - len(text)
    if missing <= 0:
        return Book(_SAMPLE_BOOK, text)
    more = Chronicle.generate(_CONTINUATION_SEED, min_chars=missing, split="test").text
    return Book(f"{_SAMPLE_BOOK}, continued" if held else "a generated chronicle", f"{text}\n{more}" if held else more)


class Haystack:
    """A book cut into sentences, and windows of it.

    Args:
        shortest: sentences with fewer tokens are left out.
    """

    def __init__(self, book: Book, tokenizer: PreTrainedTokenizerBase, shortest: int = 0) -> None:
        self.book, self.tokenizer, self.shortest = book, tokenizer, shortest
        self.ends = sentence_ends(book.text)
        self._tokens: dict[int, int] = {}
        self._chars_per_token = min(len(book.text), _SAMPLE) / max(1, self.count(book.text[:_SAMPLE]))

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return self.counts([text])[0]

    def counts(self, texts: list[str]) -> list[int]:
        """Tokens of each of several texts."""
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def window(self, rng: Random, tokens: int) -> list[Sentence]:
        """Sentences in a row that have `tokens` tokens together, from a random place; the last one is cut to fit.

        They are consecutive where the book has so many; a shorter book begins again (`passes`).
        """
        room = len(self.book.text) - tokens * self._chars_per_token * _MARGIN
        start = bisect_right(self.ends, max(0.0, room) * rng.random())
        found, total = self._take(range(start, len(self.ends)), tokens)
        if total < tokens:  # the end of the book: what comes before the start is wanted too
            before, more = self._take(range(start - 1, -1, -1), tokens - total)
            found, total = before[::-1] + found, total + more
        if not found:
            raise UsageError(f"{self.book.name} has no sentence of {self.shortest} tokens or more.")
        while total < tokens:
            again, more = self._take(range(len(self.ends)), tokens - total)
            found, total = found + again, total + more
        return self._cut(found, tokens)

    def _take(self, numbers: Iterable[int], tokens: int) -> tuple[list[Sentence], int]:
        """Sentences of the given numbers, until they have `tokens` tokens, and how many they have."""
        found: list[Sentence] = []
        total = 0
        for number in numbers:
            if total >= tokens:
                break
            sentence = self._sentence(number)
            if sentence is not None:
                found.append(sentence)
                total += sentence.tokens
        return found, total

    def _cut(self, sentences: Sequence[Sentence], tokens: int) -> list[Sentence]:
        """The first `tokens` tokens of sentences that have at least so many: the last sentence kept is cut to fit."""
        kept = first_tokens(sentences, tokens)
        rest = tokens - sum(sentence.tokens for sentence in kept)
        if rest:
            last = sentences[len(kept)]
            encoded = self.tokenizer(last.text, add_special_tokens=False, return_offsets_mapping=True)
            kept.append(Sentence(last.text[: encoded["offset_mapping"][rest][0]], rest, last.number))
        return kept

    def _sentence(self, number: int) -> Sentence | None:
        """Sentence `number` of the book; None if it is too short to be used."""
        if number not in self._tokens:
            first = number - number % _BATCH
            numbers = range(first, min(first + _BATCH, len(self.ends)))
            self._tokens |= zip(numbers, self.counts([self._text(n) for n in numbers]), strict=True)
        tokens = self._tokens[number]
        return Sentence(self._text(number), tokens, number) if tokens >= max(1, self.shortest) else None

    def _text(self, number: int) -> str:
        return self.book.text[self.ends[number - 1] if number else 0 : self.ends[number]]


def first_tokens(sentences: Sequence[Sentence], tokens: int) -> list[Sentence]:
    """The first sentences that have at most `tokens` tokens together."""
    ends = accumulate(sentence.tokens for sentence in sentences)
    return [sentence for sentence, end in zip(sentences, ends, strict=True) if end <= tokens]


def passes(sentences: Sequence[Sentence]) -> int:
    """How many times a window goes through its book: 1 unless the book is shorter than the window."""
    numbers = [s.number for s in sentences if s.number is not None]
    return 1 + sum(later <= earlier for earlier, later in zip(numbers, numbers[1:], strict=False))


def sentence_ends(text: str) -> list[int]:
    """Where sentences end, ascending, the last at the end of the text. Paragraphs and headings end sentences too."""
    ends = []
    for match in _SENTENCE_END.finditer(text):
        if text[match.start()] == "." and _ABBREVIATION.search(text, max(0, match.start() - 12), match.start()):
            continue
        ends.append(match.end())
    if not ends or ends[-1] != len(text):
        ends.append(len(text))
    return ends


def insert(sentences: Sequence[Sentence], inserted: Sequence[tuple[float, Sentence]]) -> list[Sentence]:
    """The sentences with others between them.

    Args:
        inserted: (depth, sentence); depth 0 is before the first sentence, 1 after the last, by tokens. Several at one
            place keep their order.
    """
    total = sum(sentence.tokens for sentence in sentences)
    before: dict[int, list[Sentence]] = {}
    starts = [0]
    for sentence in sentences:
        starts.append(starts[-1] + sentence.tokens)
    for depth, sentence in inserted:
        target = depth * total
        place = min(bisect_right(starts, target), len(sentences))
        if place and target - starts[place - 1] <= starts[place] - target:
            place -= 1
        before.setdefault(place, []).append(sentence)
    result: list[Sentence] = []
    for place in range(len(sentences) + 1):
        result += before.get(place, [])
        result += sentences[place : place + 1]
    return result


def join(sentences: Sequence[Sentence]) -> str:
    """The text of sentences, without white space around it. Inserted ones are set apart by a space."""
    pieces = []
    for sentence in sentences:
        gap = " " if sentence.text[:1].strip() else ""
        pieces.append(gap + sentence.text)
    return "".join(pieces).strip()


def tokens_after(sentences: Sequence[Sentence], sentence: Sentence) -> int:
    """Tokens from the end of one of the sentences to the end of the text."""
    place = max(i for i, each in enumerate(sentences) if each is sentence)
    return sum(each.tokens for each in sentences[place + 1 :])
