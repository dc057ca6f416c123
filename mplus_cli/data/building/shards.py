"""Files of a build: written beside, flushed to disk, renamed; the same rows always give the same bytes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mplus_cli.errors import UsageError

GZIP_LEVEL = 6


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends well, and then survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_rows(path: Path, rows: Iterable[dict[str, Any] | bytes]) -> int:
    """Write a shard of JSON lines, gzip-compressed when `path` ends in .gz, atomically; returns how many rows.

    A row is an object, or its line of JSON without the newline.
    """
    count = 0
    with atomic_write(path) as raw, contextlib.ExitStack() as stack:
        file: Any = raw
        if path.suffix == ".gz":  # neither name nor time in the header: equal rows, equal bytes
            file = stack.enter_context(gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0))
        for row in rows:
            line = row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()
            file.write(line + b"\n")
            count += 1
    return count


def iter_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl or .jsonl.gz file of a build.

    Raises:
        UsageError: the file is missing, cut off or not JSON lines.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for line in file:  # bytes: split at newlines only
                yield json.loads(line)
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing from its build.", "Build it again in a new folder.") from error
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(
            f"{path} is damaged: {error}.", "mplus build-data show --verify names the bad shards"
        ) from error


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
