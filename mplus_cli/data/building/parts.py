"""What a mix is made of: builds or buckets of them, their shares, how many documents of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mplus_cli.data.building.manifest import MANIFEST, Shard, read_manifest
from mplus_cli.data.building.shards import file_sha256
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
        limit: write only so many first ones of them, for a trial.
    """

    parts: tuple[Part, ...]
    documents: int | None = None
    limit: int | None = None
    seed: int = 0
    rows_per_shard: int = 1000

    @property
    def names(self) -> list[str]:
        """What the parts are called in the manifest: `build:bucket`, with the whole path where two are alike."""
        suffixes = [f":{part.bucket}" if part.bucket else "" for part in self.parts]
        names = [part.build.name + suffix for part, suffix in zip(self.parts, suffixes, strict=True)]
        if len(set(names)) == len(names):
            return names
        return [f"{part.build}{suffix}" for part, suffix in zip(self.parts, suffixes, strict=True)]

    def labels(self, counts: list[int]) -> np.ndarray:
        """[documents] the part each document comes from, when `counts` of each part are mixed."""
        labels = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
        np.random.Generator(np.random.PCG64(self.seed)).shuffle(labels)
        return labels[: self.limit]

    def parameters(self) -> dict[str, Any]:
        """What decides the bytes."""
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
