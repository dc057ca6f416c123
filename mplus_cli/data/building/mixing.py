"""A training set from builds, by proportions: which part each row comes from is drawn by seed, then the parts are read.

Parts are read in their own order, which builders of documents made random; so memory holds one label per row and files
are read from front to back. Shards are independent of each other, whoever writes them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mplus_cli.data.building import engine
from mplus_cli.data.building.documents import Running
from mplus_cli.data.building.engine import Stage, Step
from mplus_cli.data.building.folder import BuildFolder
from mplus_cli.data.building.manifest import MANIFEST, Manifest, Shard, Source, read_manifest
from mplus_cli.data.building.parts import Mix, shards_of, split_documents
from mplus_cli.data.building.plot import plot_counts
from mplus_cli.data.building.shards import atomic_write, file_sha256, iter_rows
from mplus_cli.errors import UsageError


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
        labels = self.wanted.labels(self.counts)
        size, done = self.wanted.rows_per_shard, 0
        shards = -(-len(labels) // size)
        rows: Iterator[dict[str, Any]] | None = None
        # A task's shards follow each other, so that its parts are read on from where they are.
        for number in range(shards * rank // tasks, shards * (rank + 1) // tasks):
            start = number * size
            count = min(size, len(labels) - start)
            note, name = self.work / "notes" / f"{number:06d}.json", f"train/{number:05d}.jsonl.gz"
            if build.has_shard(name):
                rows = None
            else:
                rows = rows or self._rows(labels, start)
                build.write_shard(name, islice(rows, count), bucket="train")
            if not note.is_file():
                with atomic_write(note) as file:
                    file.write(json.dumps(self._note(name, labels[start : start + count])).encode())
            done += count
            self.tick(rank, done)
        self.tick(rank, done, last=True)

    def _note(self, shard: str, labels: np.ndarray) -> dict[str, Any]:
        """Identities of a shard's documents; how many, and their tokens, by part and source."""
        ids, kept, tokens, names = [], _Tally(), Counter[str](), self.wanted.names
        for label, row in zip(labels, iter_rows(self.folder / shard), strict=True):
            part = names[label]
            ids.append(row.get("id", ""))
            kept[part][row.get("source", "unknown")] += 1
            tokens[part] += row.get("tokens", 0)
        return {"ids": ids, "kept": kept, "tokens": tokens}

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
        documents = min(sum(counts), wanted.limit or sum(counts))
        total = -(-documents // wanted.rows_per_shard)
        tasks = engine.fixed_tasks(folder.work, max(1, min(total, 4 * running.processes)))
        stage = Stage(MixStep(out, wanted, counts), tasks, "mixing", documents, "documents")
        engine.run_local(stage, out, running.processes)
        report = _report(folder, wanted)
        plot_counts(report["kept"], None, out / "histogram.png", "part of the mix")
        manifest = folder.finish(sources=_sources(wanted), counts=report, packages=("numpy",))
        engine.forget_jobs(out)
        return manifest


class _Tally(defaultdict[str, Counter[str]]):
    """Documents by part, then by source."""

    def __init__(self) -> None:
        super().__init__(Counter)


def _sources(wanted: Mix) -> list[Source]:
    """The builds, then what they were made from."""
    found = [
        Source(str(part.build), revision=f"manifest:{file_sha256(part.build / MANIFEST)}", note=part.bucket)
        for part in wanted.parts
    ]
    for part in wanted.parts:
        found += [source for source in read_manifest(part.build).sources if source not in found]
    return found


def _report(folder: BuildFolder, wanted: Mix) -> dict[str, Any]:
    """The counts of the manifest; writes `ids.txt` on the way."""
    ids: list[str] = []
    kept, tokens = _Tally(), Counter[str]()
    for path in sorted((folder.work / "notes").glob("*.json")):
        note = json.loads(path.read_bytes())
        ids += filter(None, note["ids"])
        for part, sources in note["kept"].items():
            kept[part].update(sources)
        tokens.update(note["tokens"])
    with atomic_write(folder.path / "ids.txt") as file:
        file.writelines(identity.encode() + b"\n" for identity in sorted(ids))
    names = wanted.names
    return {
        "documents": {name: sum(kept[name].values()) for name in names},
        "tokens": {name: tokens[name] for name in names} if all(tokens[name] for name in names) else None,
        "kept": {name: dict(sorted(kept[name].items())) for name in names},
        "in_two_parts": len(ids) - len(set(ids)),
    }
