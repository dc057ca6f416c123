"""Opening the files of corpora: here or on the hub, lines of text (plain, .gz, .zst, .xz) or parquet."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, Any

from mplus_cli.errors import MissingExtraError, UsageError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".parquet")
MAX_LINE = 256 << 20


def open_file(path: str) -> IO[bytes]:
    """A local file, or one on the hub."""
    if not path.startswith("hf://"):
        return open(path, "rb")
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(path, "rb")


def count_rows(path: str, upto: int) -> int:
    """How many rows (broken ones and blank lines too) a file has, but at most `upto`."""
    with open_file(path) as file:
        if path.endswith(".parquet"):
            return min(parquet_file(file, path).metadata.num_rows, upto)
        count = 0
        for count, _ in enumerate(text_lines(file, path), 1):
            if count >= upto:
                break
        return count


@contextlib.contextmanager
def naming_damage(name: str) -> Iterator[None]:
    """Whatever a broken file makes its reader raise becomes one error that names the file.

    Raises:
        UsageError: the file is damaged, cut off or gone.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{name} is gone.", "Sources must stay as they are until the build is complete.") from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UsageError(f"{name} is damaged or cut off: {error}.", "Download it again.") from error


def text_lines(file: IO[bytes], path: str) -> Iterator[bytes]:
    """Lines split at newlines only, compressed or not."""
    stream: Any = file
    if path.endswith(".gz"):
        stream = gzip.GzipFile(fileobj=file)
    elif path.endswith(".xz"):
        stream = lzma.LZMAFile(file)  # noqa: SIM115 (the caller closes `file`)
    elif path.endswith(".zst"):
        yield from _zstd_lines(file, path)
        return
    elif not path.endswith(".jsonl"):
        raise UsageError(f"{path} is of an unknown kind.", f"Readable are {', '.join(SUFFIXES)}.")
    # fsspec's files of the hub know no readline with a limit
    yield from _bounded_lines(stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream, 1 << 20))


def _zstd_lines(file: IO[bytes], path: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(f"reading {path} needs zstandard", "pip install 'mplus[data]'") from error
    try:
        with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
            yield from _bounded_lines(io.BufferedReader(stream, 1 << 20))
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error


def _bounded_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines; of one that is far too long only the beginning, so that a wrong file cannot fill memory."""
    while line := stream.readline(MAX_LINE + 1):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n") and line:
            line = stream.readline(MAX_LINE + 1)


def parquet_file(file: IO[bytes], name: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(f"reading {name} needs pyarrow", "pip install 'mplus[data]'") from error
    try:
        return pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise EOFError(str(error)) from error
