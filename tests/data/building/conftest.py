"""A small corpus in SlimPajama's layout, cut from real books, and a real tokenizer to count it with."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MPLUS_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
SETS = ["RedPajamaCommonCrawl", "RedPajamaC4", "RedPajamaBook"]


@pytest.fixture(scope="session")
def books() -> list[str]:
    paths = sorted((SHARED / "books").glob("*.txt.gz"))
    if not paths:
        pytest.skip(f"no books in {SHARED}; set MPLUS_SHARED_DATA")
    return [gzip.open(path).read().decode() for path in paths]


@pytest.fixture(scope="session")
def real_tokenizer() -> Path:
    path = SHARED / "tokenizer" / "olmo_gptneox.tokenizer.json"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {SHARED}; set MPLUS_SHARED_DATA")
    return path


def cut_documents(books: list[str], count: int, seed: int = 0, mean: float = 6.0) -> list[dict]:
    """Passages of books in SlimPajama's fields, with lengths spread over several powers of two."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        book = rng.choice(books)
        start, length = rng.randrange(len(book) - 1000), int(min(100_000, rng.lognormvariate(mean, 1.3))) + 1
        rows.append({"text": book[start : start + length], "meta": {"redpajama_set_name": rng.choice(SETS)}})
    return rows


def write_corpus(folder: Path, rows: list[dict], files: int = 5) -> Path:
    """The rows as plain, .gz, .zst, .xz and parquet files, in two folders, like SlimPajama's chunks."""
    import lzma

    import pyarrow
    import pyarrow.parquet
    import zstandard

    for number in range(files):
        mine = rows[number::files]
        path = folder / f"chunk{number % 2 + 1}" / f"example_{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(row, ensure_ascii=number % 2 == 0) + "\n" for row in mine).encode()
        kind = number % 5
        if kind == 0:
            path.write_bytes(data)
        elif kind == 1:
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(data))
        elif kind == 2:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(mine), path.with_suffix(".parquet"))
        elif kind == 3:
            path.with_suffix(".jsonl.zst").write_bytes(zstandard.compress(data))
        else:
            path.with_suffix(".jsonl.xz").write_bytes(lzma.compress(data))
    return folder


@pytest.fixture(scope="session")
def rows(books) -> list[dict]:
    """300 documents of all lengths; one comes three times, in different files."""
    rows = cut_documents(books, 299)
    rows.append({"text": books[0][:90_000], "meta": {"redpajama_set_name": "RedPajamaBook"}})
    twice = next(row for row in rows if 1024 <= len(row["text"].encode()) < 2048)
    return [*rows, twice, *rows[:3], twice]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, rows) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), rows)


def build_rows(build: Path) -> list[dict]:
    """All rows of a build, in the order of its shards."""
    from mplus_cli.data.building import iter_rows, read_manifest

    return [row for shard in read_manifest(build).shards for row in iter_rows(build / shard.path)]


def same_build(one: Path, other: Path) -> bool:
    """Equal files, and equal manifests but for when they were made."""
    names = [sorted(p.relative_to(b).as_posix() for p in b.rglob("*") if p.is_file()) for b in (one, other)]
    if names[0] != names[1]:
        return False
    manifests = [json.loads((build / "manifest.json").read_text()) | {"created": None} for build in (one, other)]
    files = [name for name in names[0] if name != "manifest.json"]
    return manifests[0] == manifests[1] and all((one / n).read_bytes() == (other / n).read_bytes() for n in files)
