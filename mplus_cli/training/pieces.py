"""A long text as several documents: cut where paragraphs begin, each piece with the questions about it."""

from __future__ import annotations

from bisect import bisect_right

from mplus_cli.training.reading import Asked, Read

_BREAKS = ("\n\n", "\n", ". ", " ")  # best first; the next piece begins behind it


def cut(read: Read, longest: int) -> list[Read]:
    """Pieces of at most `longest` characters, about equally long, that join up to the text.

    A question goes with the piece that holds all passages it needs, and is left out when none does.
    """
    ends = _ends(read.text, longest)
    starts = [0, *ends[:-1]]
    asked: list[list[Asked]] = [[] for _ in starts]
    for question in read.questions:
        first = min(start for start, _ in question.passages)
        piece = bisect_right(starts, first) - 1
        if max(end for _, end in question.passages) <= ends[piece]:
            at = starts[piece]
            asked[piece].append(question._replace(passages=tuple((s - at, e - at) for s, e in question.passages)))
    return [
        Read(read.row, read.text[start:end], tuple(questions))
        for start, end, questions in zip(starts, ends, asked, strict=True)
    ]


def _ends(text: str, longest: int) -> list[int]:
    """Where the pieces of a text end."""
    ends, start = [], 0
    while len(text) - start > longest:
        left = -(-(len(text) - start) // longest)  # pieces that are at least needed
        start = _break(text, start + (len(text) - start) // (left + 1), start + longest)
        ends.append(start)
    return [*ends, len(text)]


def _break(text: str, low: int, high: int) -> int:
    """The last good place to end a piece in low..high; `high` where there is none."""
    for mark in _BREAKS:
        at = text.rfind(mark, low, high)
        if at >= 0:
            return at + len(mark)
    return high
