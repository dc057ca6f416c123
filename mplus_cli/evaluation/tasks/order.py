"""Sequence order recall: two passages of a book are shown, and the question is which of them came first.

    mplus eval order --length 16k
    mplus eval order:words=20,book=war_and_peace.txt.gz --data FOLDER

After SORT (arXiv 2410.08133): an excerpt is remembered, passages of 20 to 50 words are drawn from it, and chance is a
half. Every pair is asked both ways round, so that a system which always says A gets exactly half of them. The pairs lie
a given number of tokens apart; one pass over the excerpt serves all of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated, Any, ClassVar

from mplus_cli.config import Range
from mplus_cli.data.chronicle import question_prompt
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.haystack import Haystack, Sentence, find_book, join, passes
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.task import Task, TaskSettings
from mplus_cli.evaluation.tasks import choices

_CHUNKS = 32  # of an excerpt, where no length is given
_PARTS = (16, 8, 4, 2)  # of an excerpt that a pair lies apart
_TRIES = 200
_ASKED = "Which of the two passages comes first in the text, A or B?"


@dataclass(frozen=True)
class Options:
    """Settings of `order`.

    Attributes:
        words: words of a passage.
        pairs: pairs at each distance, each asked both ways round.
        distances: tokens from the beginning of one passage to that of the other; by default a sixteenth, an eighth, a
            quarter and half of the excerpt.
        book: what excerpts are taken from; by default the bundled book, or the longest of `--data`.
    """

    words: Annotated[int, Range(low=5, high=200)] = 50
    pairs: Annotated[int, Range(low=1)] = 2
    distances: tuple[Annotated[int, Range(low=1)], ...] = ()
    book: str | None = None


class Order(Task):
    """Which of two passages of a book came first."""

    name, options_class, group_by = "order", Options, ("distance",)
    metrics: ClassVar = {
        "accuracy": choices.accuracy,
        "by_likelihood": choices.by_likelihood,
        "answered": choices.answered,
    }
    metric_version = "letter of the answer, likeliest option, 2"
    default_limit = 20

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """One item per excerpt.

        Raises:
            UsageError: the excerpt is too short for its passages, or the book for the excerpt.
        """
        options: Options = settings.options
        length = settings.length or _CHUNKS * settings.config.chunk_size
        distances = options.distances or tuple(max(1, length // part) for part in _PARTS)
        haystack = Haystack(find_book(settings.data, options.book, length), settings.tokenizer)
        for number in range(settings.limit):
            yield _item(number, haystack, length, distances, settings)


def _item(number: int, haystack: Haystack, length: int, distances: Sequence[int], settings: TaskSettings) -> Item:
    options: Options = settings.options
    rng = Random(f"{settings.seed}/order/{number}")
    sentences = haystack.window(rng, length)
    if passes(sentences) > 1:
        raise UsageError(
            f"order: {haystack.book.name} is shorter than {length} tokens",
            hint="name another book, or a smaller --length",
        )
    questions = []
    for distance in distances:
        for pair in range(options.pairs):
            first, second, apart, after = _pair(sentences, distance, options.words, rng)
            metadata = {
                "choices": 2,
                "distance": distance,
                "tokens_apart": apart,
                "distance_tokens": after,
                "distance_writes": after // settings.config.chunk_size,
            }
            for right, a, b in (("A", first, second), ("B", second, first)):
                questions.append(_question(f"{distance}-{pair}-{right}", a, b, right, metadata))
    described = {"length": length, "book": haystack.book.name, "words": options.words}
    return Item(f"excerpt-{number}", (Document(join(sentences), haystack.book.name),), tuple(questions), described)


def _question(identity: str, a: str, b: str, right: str, metadata: Mapping[str, Any]) -> Question:
    shown = f"Two passages of the text:\n\nA: {a}\n\nB: {b}\n\n"
    return Question(
        identity,
        shown + question_prompt(_ASKED),
        (right,),
        1,
        max_new_tokens=8,
        options=(" A", " B"),
        metadata=metadata,
    )


def _pair(sentences: Sequence[Sentence], distance: int, words: int, rng: Random) -> tuple[str, str, int, int]:
    """Two passages that do not overlap, in order; tokens from one to the other, and from the first to the end."""
    starts = [0]
    for sentence in sentences:
        starts.append(starts[-1] + sentence.tokens)
    lengths = [len(sentence.text.split()) for sentence in sentences]
    text = " ".join(join(sentences).split())
    for _ in range(_TRIES):
        first = int(rng.random() * len(sentences))
        second = _nearest(starts, starts[first] + distance)
        if second <= first or sum(lengths[first:second]) < words or sum(lengths[second:]) < words:
            continue
        passages = [" ".join(join(sentences[place:]).split()[:words]) for place in (first, second)]
        if all(text.count(passage) == 1 for passage in passages):
            return passages[0], passages[1], starts[second] - starts[first], starts[-1] - starts[first]
    raise UsageError(
        f"order: no two passages of {words} words lie {distance} tokens apart in a text of {starts[-1]} tokens",
        hint="give a larger --length, fewer words, or other distances: mplus eval order:words=20,distances=[500]",
    )


def _nearest(starts: Sequence[int], token: int) -> int:
    """Number of the sentence that begins nearest to a token."""
    place = min(bisect_left(starts, token), len(starts) - 1)
    return place - 1 if place and token - starts[place - 1] < starts[place] - token else place
