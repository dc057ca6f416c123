"""Reading one file of training text: rows or a whole text, and the questions that come with a chronicle."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from mplus_cli.data.building.rows import BadRows, read_rows
from mplus_cli.data.building.shards import iter_rows
from mplus_cli.data.sources import read_source
from mplus_cli.errors import MPlusError, UsageError
from mplus_cli.training.sources import TextFile, recipe_words

_ALL_ROWS = range(sys.maxsize)


class Asked(NamedTuple):
    """A question about a document: [start, end) are the characters of the facts that it needs."""

    question: str
    answer: str
    passages: tuple[tuple[int, int], ...]


class Read(NamedTuple):
    """What a row of a file holds."""

    row: int
    text: str
    questions: tuple[Asked, ...] = ()


def read_documents(
    file: TextFile, bad: BadRows, rows: Container[int] = _ALL_ROWS, stop: int | None = None
) -> Iterator[Read]:
    """The documents of a file in its order; what cannot be read is counted in `bad`.

    Args:
        rows: numbers of the wanted rows; the others are passed over without being parsed.
        stop: rows from this number on are not looked at.

    Raises:
        UsageError: the file is gone, cut off, or has no field of this name.
        MPlusError: the hub stopped answering.
    """
    if file.fields is None:
        if 0 not in rows:
            return
        try:
            text = read_source(file.path).text
        except UsageError as error:
            bad.add(file.name, 0, error.message.removeprefix(f"{file.path}: "))
        else:
            yield Read(0, text)
        return
    asked = _Questions(file.questions) if file.questions else None
    with recipe_words(), _hub_failures(file):
        for row in read_rows(file.path, file.fields, bad, name=file.name, only=rows, stop=stop):
            if row.text is not None:
                yield Read(row.number, row.text, asked.about(row.source) if asked else ())


@contextmanager
def _hub_failures(file: TextFile) -> Iterator[None]:
    """One message for all that can go wrong while a file is streamed: the hub client's errors have no common class."""
    try:
        yield
    except MPlusError:
        raise
    except Exception as error:
        if not file.path.startswith("hf://"):
            raise
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MPlusError(
            f"Reading {file.name} from the hub broke off: {what}",
            "The run goes on from its last checkpoint with --resume auto and the options it was started with.",
        ) from error


class _Questions:
    """The questions of a chronicle shard, whose documents come in the order of the texts."""

    def __init__(self, path: str) -> None:
        self._rows = iter_rows(path)
        self._next: dict[str, Any] | None = next(self._rows, None)
        self._ahead: dict[str, list[Asked]] = {}

    def about(self, document: str) -> tuple[Asked, ...]:
        while document not in self._ahead and self._next is not None:
            self._read_group()
        return tuple(self._ahead.pop(document, ()))

    def _read_group(self) -> None:
        row = self._next
        assert row is not None
        name, group = row["document"], []
        while row is not None and row["document"] == name:
            passages = tuple((start, end) for start, end in row["passages"])
            group.append(Asked(row["question"], row["answer"], passages))
            row = next(self._rows, None)
        self._next, self._ahead[name] = row, group
