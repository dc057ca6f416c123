"""Reading corpora: the rows of jsonl (plain, .gz, .zst, .xz) and parquet files, in SlimPajama's layout or another.

Rows are numbered by their line (from 0), broken ones too, so that a row keeps its number whoever reads it.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from mplus_cli.errors import MissingExtraError, UsageError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".parquet")
_MAX_LINE = 256 << 20
_NAMED = 20
_PROGRESS_ROWS = 32


@dataclass(frozen=True)
class Fields:
    """Which fields of a row are read; dots go into nested objects.

    Attributes:
        text: the document, a string.
        source: name of the collection it comes from; "unknown" where a row has none.
    """

    text: str = "text"
    source: str = "meta.redpajama_set_name"


@dataclass
class BadRows:
    """Rows that could not be used: all are counted, the first are named, too many end the build.

    Attributes:
        limit: how many are put up with.
        count: how many there were.
        named: `file:line: reason` of the first ones.
    """

    limit: int
    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, file: str, row: int, reason: str) -> None:
        self.count += 1
        if len(self.named) < _NAMED:
            self.named.append(f"{file}:{row + 1}: {reason}")
        self.check()

    def merge(self, count: int, named: list[str]) -> None:
        self.count += count
        self.named = (self.named + named)[:_NAMED]
        self.check()

    def check(self) -> None:
        if self.count > self.limit:
            lines = "\n".join(f"  {line}" for line in self.named)
            raise UsageError(
                f"more than {self.limit} rows cannot be read; the first ones:\n{lines}",
                "Mend the files, or pass a larger --max-bad-rows.",
            )


@dataclass(frozen=True)
class Row:
    """One document; `text` is None for a line that is shorter than the reader was asked for."""

    number: int
    text: str | None
    source: str


def read_rows(
    path: str,
    fields: Fields,
    bad: BadRows,
    *,
    name: str | None = None,
    stop: int | None = None,
    short: Callable[[bytes], bool] = lambda line: False,
    only: Container[int] | None = None,
    progress: Callable[[int], None] = lambda position: None,
) -> Iterator[Row]:
    """The rows of one file.

    Args:
        path: of a local file, or an `hf://` address.
        name: what messages call it.
        stop: read only rows below this number.
        only: numbers of the rows that are wanted; the others are passed over unread.
        progress: told now and then how many bytes of the file are read.
        short: lines of JSON for which it is true are not parsed, but for the first of a file; their rows have no text.

    Raises:
        UsageError: the file is damaged, of an unknown kind, has no field of this name, or has too many broken rows.
    """
    name = name or path
    reader = _parquet_records if path.endswith(".parquet") else _json_records
    try:
        with open_file(path) as file:
            for number, record in reader(file, fields, bad, name, short):
                if stop is not None and number >= stop:
                    return
                if number % _PROGRESS_ROWS == 0:
                    progress(file.tell())
                if only is not None and number not in only:
                    continue
                if record is None:
                    yield Row(number, None, "")
                elif (row := _row(record, fields, bad, name, number)) is not None:
                    yield row
    except FileNotFoundError as error:
        raise UsageError(f"{name} is gone.", "Sources must stay as they are until the build is complete.") from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UsageError(f"{name} is damaged or cut off: {error}.", "Download it again.") from error


class _Line:
    """A line of JSON, parsed when it is needed."""

    __slots__ = ("line",)

    def __init__(self, line: bytes) -> None:
        self.line = line


def _json_records(
    file: IO[bytes], fields: Fields, bad: BadRows, name: str, short: Callable[[bytes], bool]
) -> Iterator[tuple[int, Any]]:
    """Number and content of each row; None for short ones."""
    checked = False
    for number, line in enumerate(_text_lines(file, name)):
        line = line.strip(b"\r\n")
        if not line:
            continue
        if not checked:
            checked = _check_fields(line, fields, name)
        elif line[:1] == b"{" and line[-1:] == b"}" and short(line):
            yield number, None
            continue
        yield number, _Line(line)


def _check_fields(line: bytes, fields: Fields, name: str) -> bool:
    """Whether a line is an object; it must have the field of the text then, or the whole file is of another kind."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if isinstance(record, dict) and _lookup(record, fields.text) is None:
        raise _no_field(name, fields.text, list(record))
    return isinstance(record, dict)


def _text_lines(file: IO[bytes], path: str) -> Iterator[bytes]:
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
    while line := stream.readline(_MAX_LINE + 1):
        yield line
        while len(line) > _MAX_LINE and not line.endswith(b"\n") and line:
            line = stream.readline(_MAX_LINE + 1)


def _parquet_records(
    file: IO[bytes], fields: Fields, bad: BadRows, name: str, short: Callable[[bytes], bool]
) -> Iterator[tuple[int, Any]]:
    parquet = parquet_file(file, name)
    columns = [field.split(".")[0] for field in (fields.text, fields.source)]
    found = parquet.schema_arrow.names
    if columns[0] not in found:
        raise _no_field(name, fields.text, found)
    number = 0
    for batch in parquet.iter_batches(batch_size=64, columns=[column for column in columns if column in found]):
        for record in batch.to_pylist():
            yield number, record
            number += 1


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


def _row(record: Any, fields: Fields, bad: BadRows, name: str, number: int) -> Row | None:
    if isinstance(record, _Line):
        if len(record.line) > _MAX_LINE:
            bad.add(name, number, f"longer than {_MAX_LINE >> 20} MB")
            return None
        try:
            record = json.loads(record.line)
        except (ValueError, RecursionError) as error:
            bad.add(name, number, f"not JSON ({error})")
            return None
    if not isinstance(record, dict):
        bad.add(name, number, f"{type(record).__name__} instead of an object")
        return None
    text = _lookup(record, fields.text)
    if not isinstance(text, str):
        bad.add(name, number, f"field {fields.text!r} is {type(text).__name__}, fields: {', '.join(record)}")
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        bad.add(name, number, "not valid Unicode (half a surrogate pair)")
        return None
    source = _lookup(record, fields.source)
    return Row(number, text, source if isinstance(source, str) and source else "unknown")


def _lookup(record: dict[str, Any], field: str) -> Any:
    value: Any = record
    for part in field.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _no_field(name: str, field: str, found: list[str]) -> UsageError:
    return UsageError(
        f"{name} has no field {field!r}; its fields are {', '.join(found)}.", "Name the right one with --text-field."
    )


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
        for count, _ in enumerate(_text_lines(file, path), 1):
            if count >= upto:
                break
        return count
