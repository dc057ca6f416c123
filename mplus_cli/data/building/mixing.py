"""A training set from builds, by proportions: which part each row comes from is drawn by seed, then the parts are read.

Parts are read in their own order, which builders of documents made random; so memory holds one label per row and files
are read from front to back. Shards are independent of each other, whoever writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mplus_cli.data.building import engine
from mplus_cli.data.building.documents import Running
from mplus_cli.data.building.engine import Stage, Step
from mplus_cli.data.building.folder import BuildFolder
from mplus_cli.data.building.manifest import MANIFEST, Manifest, Shard, Source, read_manifest
from mplus_cli.data.building.shards import atomic_write, file_sha256, iter_rows
from mplus_cli.errors import UsageError


@dataclass(frozen=True)
class Part:
    """A build, or one bucket of it, and its share."""

    build: Path
    bucket: str | None
    share: float


@dataclass(frozen=True)
class Mix:
    """What to mix.

    Attributes:
        parts: two or more, or one to reshuffle.
        documents: in all; None: as many as the parts allow.
    """

    parts: tuple[Part, ...]
    documents: int | None = None
    seed: int = 0
    rows_per_shard: int = 1000

    def parameters(self) -> dict[str, Any]:
        parts = [
            {"build": str(p.build), "bucket": p.bucket, "share": p.share, "manifest": file_sha256(p.build / MANIFEST)}
            for p in self.parts
        ]
        return {**asdict(self), "parts": parts}


def parse_parts(texts: list[str]) -> tuple[Part, ...]:
    """`builds/slim:4k-8k=0.2` -> a part; the bucket is what follows the last colon, if the build has one of that name.

    Raises:
        UsageError: not of this form, no build there, or no such bucket.
    """
    parts = []
    for text in texts:
        where, equals, share = text.rpartition("=")
        try:
            weight = float(share)
        except ValueError:
            weight = -1
        if not equals or not 0 < weight < float("inf"):
            raise UsageError(f"--part {text}: no share.", "--part builds/slim:4k-8k=0.2")
        build, bucket = Path(where), None
        if not build.exists() and ":" in where:
            name, _, bucket = where.rpartition(":")
            build = Path(name)
        manifest = read_manifest(build)
        buckets = manifest.buckets()
        if bucket is not None and bucket not in buckets:
            raise UsageError(f"{build} has no bucket {bucket!r}.", f"It has {', '.join(map(repr, buckets))}.")
        parts.append(Part(build, bucket, weight))
    if len({(part.build.resolve(), part.bucket) for part in parts}) < len(parts):
        raise UsageError("A part is given twice.", "Give each once, with the sum of its shares.")
    return tuple(parts)


def shards_of(part: Part) -> list[Shard]:
    """Shards with documents of a part; without a bucket, all but those that are held out."""
    buckets = read_manifest(part.build).buckets()
    if part.bucket is not None:
        return buckets[part.bucket]
    return [shard for name, shards in buckets.items() if name not in ("held-out", "test") for shard in shards]


def split_documents(shares: list[float], available: list[int], documents: int | None) -> list[int]:
    """How many documents of each part: by shares, the largest remainders rounded up.

    Raises:
        UsageError: a part has too few.
    """
    total = sum(shares)
    if documents is None:
        documents = int(min(a * total / share for a, share in zip(available, shares, strict=True)) + 1e-6)
        while documents and any(n > a for n, a in zip(_rounded(shares, documents), available, strict=True)):
            documents -= 1
    counts = _rounded(shares, documents)
    for place, (count, there) in enumerate(zip(counts, available, strict=True)):
        if count > there:
            most = split_documents(shares, available, None)
            raise UsageError(
                f"Part {place + 1} has {there:,} documents, and {count:,} are wanted.",
                f"At most {sum(most):,} documents can be mixed in these proportions: --documents {sum(most)}",
            )
    if documents == 0:
        raise UsageError("A part has no documents.", "mplus build-data show says what each build holds.")
    return counts


def _rounded(shares: list[float], documents: int) -> list[int]:
    exact = [share / sum(shares) * documents for share in shares]
    counts = [int(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: documents - sum(counts)]:
        counts[i] += 1
    return counts


class MixStep(Step):
    """Writes shards `train/NUMBER.jsonl.gz`.

    Args:
        counts: documents of each part.
    """

    name = "mix"

    def __init__(self, folder: Path, wanted: Mix, counts: list[int]) -> None:
        super().__init__(folder)
        self.wanted, self.counts = wanted, counts

    def task(self, rank: int, tasks: int) -> None:
        build = BuildFolder.attach(self.folder)
        labels = np.repeat(np.arange(len(self.counts), dtype=np.uint16), self.counts)
        np.random.Generator(np.random.PCG64(self.wanted.seed)).shuffle(labels)
        size, done = self.wanted.rows_per_shard, 0
        shards = -(-len(labels) // size)
        rows: Iterator[dict[str, Any]] | None = None
        # A task's shards follow each other, so that its parts are read on from where they are.
        for number in range(shards * rank // tasks, shards * (rank + 1) // tasks):
            start = number * size
            count = min(size, len(labels) - start)
            note, name = self.work / "ids" / f"{number:06d}.json", f"train/{number:05d}.jsonl.gz"
            if build.has_shard(name):
                rows = None
            else:
                rows = rows or self._rows(labels, start)
                build.write_shard(name, islice(rows, count), bucket="train")
            if not note.is_file():
                ids = [row.get("id", "") for row in iter_rows(self.folder / name)]
                with atomic_write(note) as file:
                    file.write(json.dumps(ids).encode())
            done += count
            self.tick(rank, done)
        self.tick(rank, done, last=True)

    def _rows(self, labels: np.ndarray, start: int) -> Iterator[dict[str, Any]]:
        """The rows of the mix from `start` on."""
        before = np.bincount(labels[:start], minlength=len(self.counts))
        readers = [
            _rows_from(part.build, shards_of(part), int(skip))
            for part, skip in zip(self.wanted.parts, before, strict=True)
        ]
        for label in labels[start:]:
            yield next(readers[label]) | {"build": self.wanted.parts[label].build.name}


def _rows_from(build: Path, shards: list[Shard], skip: int) -> Iterator[dict[str, Any]]:
    """Rows of shards one after the other, without the first `skip`; whole shards are passed over unread."""
    for shard in shards:
        if skip >= shard.rows:
            skip -= shard.rows
            continue
        for number, row in enumerate(iter_rows(build / shard.path)):
            if number >= skip:
                yield row
        skip = 0


def build_mix(out: Path, wanted: Mix, running: Running) -> Manifest:
    """Mix builds into `out`.

    Raises:
        UsageError: a part has too few documents, has no texts, or is damaged.
    """
    shards = [shards_of(part) for part in wanted.parts]
    for part, there in zip(wanted.parts, shards, strict=True):
        if there and "text" not in next(iter_rows(part.build / there[0].path), {}):
            raise UsageError(f"{part.build} has no texts to train on.", "Mix builds of documents.")
    available = [sum(shard.rows for shard in there) for there in shards]
    counts = split_documents([part.share for part in wanted.parts], available, wanted.documents)
    size = sum(
        sum(s.bytes for s in there) * count / max(rows, 1)
        for there, count, rows in zip(shards, counts, available, strict=True)
    )
    with BuildFolder.open(out, "mix", wanted.parameters(), need_bytes=1.2 * size) as folder:
        total = -(-sum(counts) // wanted.rows_per_shard)
        tasks = engine.fixed_tasks(folder.work, max(1, min(total, 4 * running.processes)))
        stage = Stage(MixStep(out, wanted, counts), tasks, "mixing", sum(counts), "documents")
        engine.run_local(stage, out, running.processes)
        ids = sorted(i for note in (folder.work / "ids").glob("*.json") for i in json.loads(note.read_bytes()) if i)
        with atomic_write(out / "ids.txt") as file:
            file.writelines(identity.encode() + b"\n" for identity in ids)
        manifest = folder.finish(sources=_sources(wanted), counts=_report(wanted, counts, ids), packages=("numpy",))
        engine.forget_jobs(out)
        return manifest


def _sources(wanted: Mix) -> list[Source]:
    """The builds, then what they were made from."""
    found = [
        Source(str(part.build), revision=f"manifest:{file_sha256(part.build / MANIFEST)}", note=part.bucket)
        for part in wanted.parts
    ]
    for part in wanted.parts:
        found += [source for source in read_manifest(part.build).sources if source not in found]
    return found


def _report(wanted: Mix, counts: list[int], ids: list[str]) -> dict[str, Any]:
    parts = [
        {"part": f"{part.build.name}{f':{part.bucket}' if part.bucket else ''}", "documents": count}
        for part, count in zip(wanted.parts, counts, strict=True)
    ]
    return {"documents": sum(counts), "parts": parts, "in_two_parts": len(ids) - len(set(ids))}
