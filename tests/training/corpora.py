"""Small corpora for the tests of training data. Texts tell their number, so that a test knows which one it sees."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

from mplus_cli.data.building import BuildFolder, Source, Tokenizer
from mplus_cli.training.recipe import DataSettings
from mplus_cli.training.sources import Sources, open_sources

SETTINGS = {"min_chunk": 4, "max_chunk": 16, "window": 40}


def text(number: int, length: int = 60) -> str:
    """`length` characters, different for each number."""
    return f"{number:05d} {'lorem ipsum dolor sit amet ' * (length // 20 + 1)}"[:length]


def number_of(document: str) -> int:
    return int(document[:5])


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    """Rows as JSON lines; strings that are no texts (`{broken`) are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def write_files(folder: Path, sizes: Sequence[int], lengths: Sequence[int] = (60,)) -> Path:
    """One jsonl file per size; documents are numbered through all of them and take turns in `lengths`."""
    number = 0
    for file, size in enumerate(sizes):
        numbers = range(number, number + size)
        write_rows(folder / f"{file}.jsonl", [{"text": text(n, lengths[n % len(lengths)])} for n in numbers])
        number += size
    return folder


def sources(folder: Path) -> Sources:
    return open_sources((str(folder),))


def settings(folder: Path | str, **overrides) -> DataSettings:
    return DataSettings(sources=(str(folder),), **(SETTINGS | overrides))


def write_build(path: Path, buckets: dict[str, list[str]], tokenizer: Tokenizer | None = None, count=len) -> Path:
    """A build of documents as `mplus build-data` leaves it; `count` gives the tokens of a text."""
    with BuildFolder.open(path, "slimpajama", {}) as folder:
        for bucket, texts in buckets.items():
            rows = [{"text": t, "bucket": bucket, "source": "x", "tokens": count(t)} for t in texts]
            folder.write_shard(f"{bucket}/00000.jsonl.gz", rows, bucket=bucket)
        folder.finish(sources=[Source("x")], counts={}, tokenizer=tokenizer)
    return path
