"""Reading corpora: the rows of jsonl (plain, .gz, .zst, .xz) and parquet files, in SlimPajama's layout or another.

Rows are numbered by their line (from 0), broken ones too, so that a row keeps its number whoever reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from mplus_cli.data.building.files import MAX_LINE, naming_damage, open_file, parquet_file, text_lines
from mplus_cli.errors import UsageError

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
    with naming_damage(name), open_file(path) as file:
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


def read_objects(
    path: str, bad: BadRows, name: str, progress: Callable[[int], None] = lambda position: None
) -> Iterator[tuple[int, Any]]:
    """Number and value of every row of a jsonl or parquet file, whatever its fields; broken lines are counted.

    Args:
        progress: told now and then how many bytes of the file are read.

    Raises:
        UsageError: the file is damaged or of an unknown kind, or has too many broken lines.
    """
    with naming_damage(name), open_file(path) as file:
        if path.endswith(".parquet"):
            batches = parquet_file(file, name).iter_batches(batch_size=64)
            values = (row for batch in batches for row in batch.to_pylist())
        else:
            lines = enumerate(text_lines(file, name))
            values = (parse_line(line, bad, name, at) if line.strip() else None for at, line in lines)
        for number, value in enumerate(values):
            if number % _PROGRESS_ROWS == 0:
                progress(file.tell())
            if value is not None:
                yield number, value


def parse_line(line: bytes, bad: BadRows, name: str, number: int) -> Any:
    """The value of a line of JSON; a broken one (or `null`) is counted and gives None."""
    if len(line) > MAX_LINE:
        bad.add(name, number, f"longer than {MAX_LINE >> 20} MB")
        return None
    try:
        value = json.loads(line)
        if b"\\ud" in line or b"\\uD" in line:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        bad.add(name, number, "not valid Unicode (half a surrogate pair)")
        return None
    except (ValueError, RecursionError) as error:
        bad.add(name, number, f"not JSON ({error})")
        return None
    if value is None:
        bad.add(name, number, "null instead of an object")
    return value


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
    for number, line in enumerate(text_lines(file, name)):
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


def _row(record: Any, fields: Fields, bad: BadRows, name: str, number: int) -> Row | None:
    if isinstance(record, _Line):
        record = parse_line(record.line, bad, name, number)
        if record is None:
            return None
    if not isinstance(record, dict):
        bad.add(name, number, f"{type(record).__name__} instead of an object")
        return None
    text = _lookup(record, fields.text)
    if not isinstance(text, str):
        bad.add(name, number, f"field {fields.text!r} is {type(text).__name__}, fields: {', '.join(record)}")
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
