"""Last stages: read the winners' texts a second time, then write the shards, each bucket in the order of the sampling.

That order is random with respect to everything but the seed, so shards need no further shuffling.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mplus_cli.data.building.corpus import Corpus
from mplus_cli.data.building.engine import Step
from mplus_cli.data.building.folder import BuildFolder
from mplus_cli.data.building.index import document_id, sampling_key
from mplus_cli.data.building.rows import BadRows, Fields, read_rows
from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import UsageError

PLACE = np.dtype([("bucket", "u1"), ("rank", "u8"), ("part", "u4"), ("at", "u8"), ("bytes", "u4"), ("id", "S32")])


class CollectStep(Step):
    """Writes `parts/RANK.jsonl` (the winners of a task's files) and `parts/RANK.npy` (where each of them is)."""

    name = "collect"

    def __init__(self, folder: Path, buckets: list[str], fields: Fields, seed: int) -> None:
        super().__init__(folder)
        self.buckets, self.fields, self.seed = buckets, fields, seed

    def task(self, rank: int, tasks: int) -> None:
        corpus = Corpus.load(self.work / "corpus.json")
        winners = np.load(self.work / "winners.npy", mmap_mode="r")
        places: list[tuple] = []
        at = done = 0
        with atomic_write(self.work / "parts" / f"{rank:05d}.jsonl") as part:
            for number in range(rank, len(corpus.files), tasks):
                low, high = np.searchsorted(winners["file"], [number, number + 1])
                for winner, line, identity in self._lines(corpus, number, winners[low:high], rank, done):
                    part.write(line + b"\n")
                    places.append((winner["bucket"], winner["rank"], rank, at, len(line), identity.encode()))
                    at += len(line) + 1
                done += corpus.files[number].bytes
        with atomic_write(self.work / "parts" / f"{rank:05d}.npy") as file:
            np.save(file, np.array(places, PLACE))
        self.tick(rank, done, last=True)

    def _lines(self, corpus: Corpus, number: int, winners: np.ndarray, rank: int, done: int):
        if not len(winners):
            return
        file = corpus.files[number]
        wanted = {int(winner["row"]): winner for winner in winners}
        rows = read_rows(
            file.path,
            self.fields,
            BadRows(0),
            name=file.name,
            stop=max(wanted) + 1,
            only=wanted,
            progress=lambda position: self.tick(rank, done + position),
        )
        for row in rows:
            winner, text = wanted.pop(row.number), row.text or ""
            identity = document_id(text)
            if sampling_key(identity, self.seed).encode() != winner["key"]:
                raise _changed(file.name)
            record = {
                "text": text,
                "id": identity,
                "bucket": self.buckets[winner["bucket"]],
                "source": row.source,
                "tokens": int(winner["tokens"]),
            }
            yield winner, json.dumps(record, ensure_ascii=False).encode(), identity
        if wanted:
            raise _changed(file.name)


class WriteStep(Step):
    """Writes the shards `BUCKET/NUMBER.jsonl.gz` from the parts."""

    name = "write"

    def __init__(self, folder: Path, buckets: list[str], rows_per_shard: int) -> None:
        super().__init__(folder)
        self.buckets, self.rows_per_shard = buckets, rows_per_shard

    def task(self, rank: int, tasks: int) -> None:
        build = BuildFolder.attach(self.folder)
        places = all_places(self.work)
        done = 0
        shards = [
            (bucket, start)
            for bucket in range(len(self.buckets))
            for start in range(0, int(np.count_nonzero(places["bucket"] == bucket)), self.rows_per_shard)
        ]
        for bucket, start in shards[rank::tasks]:
            first = int(np.searchsorted(places["bucket"], bucket))
            end = min(first + start + self.rows_per_shard, int(np.searchsorted(places["bucket"], bucket, "right")))
            chosen = places[first + start : end]
            name = self.buckets[bucket]
            build.write_shard(
                f"{name}/{start // self.rows_per_shard:05d}.jsonl.gz",
                (_read(self.work, place) for place in chosen),
                bucket=name,
            )
            done += len(chosen)
            self.tick(rank, done)
        self.tick(rank, done, last=True)


def all_places(work: Path) -> np.ndarray:
    """Where all collected documents are, in the order in which they are written."""
    parts = [np.load(path) for path in sorted((work / "parts").glob("*.npy"))]
    places = np.concatenate([np.empty(0, PLACE), *parts])
    return places[np.lexsort((places["rank"], places["bucket"]))]


def _read(work: Path, place: np.void) -> bytes:
    with open(work / "parts" / f"{place['part']:05d}.jsonl", "rb") as part:
        part.seek(int(place["at"]))
        return part.read(int(place["bytes"]))


def winners_count(work: Path) -> int:
    return len(np.load(work / "winners.npy", mmap_mode="r"))


def _changed(name: str) -> UsageError:
    return UsageError(f"{name} changed while it was being read.", "Build again in a new folder.")
