"""Books for event questions: text files of any kind `mplus inject` reads, or LongBook-QA's own jsonl."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mplus_cli.data.building.rows import BadRows, read_objects
from mplus_cli.data.sources import expand, read_source
from mplus_cli.errors import UsageError

_TEXT_FIELDS = ("context", "text")
_NAME_FIELDS = ("title", "name", "id")
_JSONL = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst")


@dataclass(frozen=True)
class Book:
    """A text, what it is called, and the sha256 of its UTF-8 text, which is its identity."""

    name: str
    text: str
    sha256: str


def read_books(patterns: Iterable[str], bad: BadRows) -> list[Book]:
    """Read books from files, folders and globs; each text once, in the order of first appearance.

    A `.jsonl` file (also .gz, .xz, .zst) holds a book per line in the field `context` (as in InfiniteBench's
    longbook_qa_eng.jsonl, where every question repeats its book) or `text`.

    Args:
        bad: counts broken lines, and says how many are put up with.

    Raises:
        UsageError: nothing to read, too many broken lines, or fields of other names.
    """
    books: dict[str, Book] = {}
    for pattern in patterns:
        for path in expand(pattern):
            for name, text in _rows(path, bad) if path.endswith(_JSONL) else [_file(path)]:
                sha256 = hashlib.sha256(text.encode()).hexdigest()
                books.setdefault(sha256, Book(name, text, sha256))
    if not books:
        raise UsageError("no book was given", hint="mplus build-data event-qa --out event-qa BOOK.txt...")
    return list(books.values())


def _file(path: str) -> tuple[str, str]:
    source = read_source(path)
    return Path(source.name).name.split(".")[0], source.text


def _rows(path: str, bad: BadRows) -> Iterator[tuple[str, str]]:
    for number, row in read_objects(path, bad, path):
        fields = row if isinstance(row, dict) else {}
        text = next((fields[field] for field in _TEXT_FIELDS if isinstance(fields.get(field), str)), "")
        if not text.strip():
            found = ", ".join(fields) or type(row).__name__
            raise UsageError(f"{path}:{number + 1}: no text in the field {' or '.join(_TEXT_FIELDS)} (found: {found})")
        default = f"{Path(path).name.split('.')[0]}-{number + 1}"
        name = next((str(fields[field]) for field in _NAME_FIELDS if fields.get(field) not in (None, "")), default)
        yield name, text.replace("\r\n", "\n")
