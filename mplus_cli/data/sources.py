"""Sources of text for `mplus inject`: files, directories, globs and standard input, each with a name and a hash.

Everything is read and checked before any work starts, and all that is wrong is said at once.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import os
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mplus_cli.data.documents import DOCUMENT_READERS, document_kind
from mplus_cli.data.encodings import decode
from mplus_cli.errors import MissingExtraError, MPlusError, UsageError

TEXT_SUFFIXES = {".txt", ".text", ".md", ".markdown", ".rst"}
DIRECTORY_SUFFIXES = TEXT_SUFFIXES | {".html", ".htm", ".xhtml", ".pdf", ".epub"}
MAX_BYTES = 1 << 30  # of one source, after decompression: a larger "text" is a mistake or an attack


@dataclass(frozen=True)
class Source:
    """One text to inject.

    Attributes:
        name: the path as it was given (with `/`), or `stdin`; what `mplus memory forget --source` takes.
        sha256: of the bytes of the document, after gunzip: the same book has one hash, compressed or not.
        text: the text, with `\\n` line ends.
        guessed_encoding: what it was decoded from, where that had to be guessed.
    """

    name: str
    sha256: str
    text: str
    guessed_encoding: str | None = None


def read_sources(patterns: Iterable[str]) -> list[Source]:
    """Read files, directories (recursively, sorted), globs and `-` (standard input).

    Raises:
        UsageError: naming every source that is missing, empty, binary, unreadable or of unknown encoding.
    """
    sources: list[Source] = []
    problems: list[MPlusError] = []
    seen: set[str] = set()
    for pattern in patterns:
        try:
            paths = expand(pattern)
        except UsageError as error:
            problems.append(error)
            continue
        for path in paths:
            identity = path if path == "-" else os.path.realpath(path)
            if identity in seen:
                continue
            seen.add(identity)
            try:
                sources.append(read_source(path))
            except MPlusError as error:
                problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "\n".join(f"  {problem.message}" for problem in problems)
        hints = list(dict.fromkeys(problem.hint for problem in problems if problem.hint))
        raise UsageError(f"{len(problems)} sources cannot be used:\n{lines}", hint="; ".join(hints) or None)
    if not sources:
        raise UsageError("no source was given", hint="mplus inject BOOK.txt --state memory.pt")
    return sources


def expand(pattern: str) -> list[str]:
    """The files that one argument means, sorted; `-` stands for itself.

    A directory yields the text and document files below it, but no hidden ones; a file may have any suffix.
    """
    path = Path(pattern)
    if pattern == "-" or path.is_file():
        return [pattern]
    if path.is_dir():
        files = [
            str(file)
            for file in sorted(path.rglob("*"))
            if file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and _readable_suffix(file)
        ]
        if not files:
            known = " ".join(sorted(DIRECTORY_SUFFIXES))
            raise UsageError(f"{pattern}: no file in this directory is a text or document ({known}, and .gz of these)")
        return files
    if glob.has_magic(pattern):
        files = sorted(match for match in glob.glob(pattern, recursive=True) if Path(match).is_file())
        if not files:
            raise UsageError(f"{pattern}: no file matches")
        return files
    if path.exists():
        return [pattern]  # a pipe or device: read it like a file
    raise UsageError(f"{pattern}: no such file or directory")


def read_source(path: str) -> Source:
    """Read one file, or standard input for `-`.

    Raises:
        UsageError: it is missing, unreadable, empty, binary, or of unknown encoding.
        MissingExtraError: its reader is not installed; the hint is the pip line.
    """
    name = "stdin" if path == "-" else Path(os.path.normpath(path)).as_posix()
    content = _bytes(path, name)
    if content.startswith(b"\x1f\x8b"):
        content = _gunzip(content, name)
    if not content:
        raise UsageError(f"{name}: empty file")
    kind = document_kind(name, content)
    try:
        text, guessed = (DOCUMENT_READERS[kind](content, name), None) if kind else decode(content, name)
    except ImportError as error:
        raise MissingExtraError(
            f"{name}: reading {kind or 'this encoding'} needs the package {error.name}",
            hint='pip install "mplus[readers]"',
        ) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        reason = "no text in it (scanned pages?)" if kind == "pdf" else "no text in it"
        raise UsageError(f"{name}: {reason}")
    return Source(name, hashlib.sha256(content).hexdigest(), text, guessed)


def _readable_suffix(path: Path) -> bool:
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower() in DIRECTORY_SUFFIXES


def _bytes(path: str, name: str) -> bytes:
    try:
        if path == "-":
            if sys.stdin.isatty():
                raise UsageError(
                    "standard input is a terminal", hint="pipe a text in, as in: mplus inject - < book.txt"
                )
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{name}: {(error.strerror or str(error)).lower()}") from error
    return _limited(content, name)


def _gunzip(content: bytes, name: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            return _limited(file.read(MAX_BYTES + 1), name)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{name}: damaged gzip file ({error})") from error


def _limited(content: bytes, name: str) -> bytes:
    if len(content) > MAX_BYTES:
        raise UsageError(f"{name}: larger than {MAX_BYTES >> 30} GiB", hint="split it into several files")
    return content
