"""Books for event questions: text files of any kind `mplus inject` reads, or LongBook-QA's own jsonl."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mplus_cli.data.sources import expand, read_source
from mplus_cli.errors import UsageError

_TEXT_FIELDS = ("context", "text")
_NAME_FIELDS = ("title", "name", "id")


@dataclass(frozen=True)
class Book:
    """A text, what it is called, and the sha256 of its UTF-8 text, which is its identity."""

    name: str
    text: str
    sha256: str


def read_books(patterns: Iterable[str]) -> list[Book]:
    """Read books from files, folders and globs; each text once, in the order of first appearance.

    A `.jsonl` file (also .gz, .xz) holds a book per line in the field `context` (as in InfiniteBench's
    longbook_qa_eng.jsonl, where every question repeats its book) or `text`.

    Raises:
        UsageError: nothing to read, broken lines, or fields of other names.
    """
    books: dict[str, Book] = {}
    for pattern in patterns:
        for path in expand(pattern):
            for name, text in _rows(Path(path)) if _is_jsonl(path) else [_file(path)]:
                sha256 = hashlib.sha256(text.encode()).hexdigest()
                books.setdefault(sha256, Book(name, text, sha256))
    if not books:
        raise UsageError("no book was given", hint="mplus build-data event-qa --out event-qa BOOK.txt...")
    return list(books.values())


def _file(path: str) -> tuple[str, str]:
    source = read_source(path)
    return Path(source.name).name.split(".")[0], source.text


def _is_jsonl(path: str) -> bool:
    return path.removesuffix(".gz").removesuffix(".xz").endswith(".jsonl")


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row(json.loads(line), f"{path.name.split('.')[0]}-{number}", f"{path}:{number}")
    except ValueError as error:
        raise UsageError(f"{path}:{number}: not JSON ({error})") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UsageError(f"{path}: {error}") from error


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix == ".gz":
        return gzip.open(path)
    return lzma.open(path) if path.suffix == ".xz" else open(path, "rb")


def _row(row: object, default_name: str, place: str) -> tuple[str, str]:
    fields = row if isinstance(row, dict) else {}
    text = next((fields[field] for field in _TEXT_FIELDS if isinstance(fields.get(field), str)), None)
    if text is None or not text.strip():
        found = ", ".join(fields) or type(row).__name__
        raise UsageError(f"{place}: no text in the field {' or '.join(_TEXT_FIELDS)} (found: {found})")
    name = next((str(fields[field]) for field in _NAME_FIELDS if fields.get(field) not in (None, "")), default_name)
    return name, text.replace("\r\n", "\n")
