"""Second stage: merge what all tasks noted, drop exact duplicates, and let the smallest keys of each bucket win.

Everything streams in the order of the keys, so memory holds the winners' places and nothing else.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mplus_cli.data.building.engine import Step
from mplus_cli.data.building.index import Entry, Lengths, Reading, document_id, sampling_key
from mplus_cli.data.building.rows import BadRows
from mplus_cli.data.building.shards import atomic_write, iter_rows
from mplus_cli.errors import UsageError

WINNER = np.dtype([("file", "u4"), ("row", "u8"), ("bucket", "u1"), ("rank", "u8"), ("tokens", "u4"), ("key", "S32")])
_OPEN_FILES = 200
_CHUNK = 50_000


@dataclass(frozen=True)
class ByLength:
    """Buckets of token counts, `quota` documents of each (None: all)."""

    lengths: Lengths
    quota: int | None

    @property
    def names(self) -> list[str]:
        return self.lengths.names

    def bucket(self, entry: Entry) -> int | None:
        return self.lengths.bucket(entry.tokens)


@dataclass(frozen=True)
class ByPosition:
    """The first `held_out` rows of the corpus are one bucket, the rest another; a duplicate belongs to the former.

    Attributes:
        starts: position of the first row of each file.
    """

    held_out: int
    starts: tuple[int, ...]
    quota: int | None = None

    @property
    def names(self) -> list[str]:
        return ["held-out", "train"]

    def bucket(self, entry: Entry) -> int | None:
        return 0 if self.starts[entry.file] + entry.row < self.held_out else 1


@dataclass
class Tally:
    """What was found and what was kept, by bucket and source."""

    found: dict[str, Counter[str]] = field(default_factory=dict)
    kept: dict[str, Counter[str]] = field(default_factory=dict)
    kept_tokens: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    excluded: int = 0


def choose(
    entries: Iterable[Entry], policy: ByLength | ByPosition, excluded: Callable[[str], bool], tally: Tally
) -> Iterator[tuple[Entry, int, int]]:
    """Winners as (entry, bucket, rank in the bucket), from entries in ascending order."""
    names = policy.names
    ranks = [0] * len(names)
    for name in names:
        tally.found[name], tally.kept[name] = Counter(), Counter()
    for key, group in groupby(entries, lambda entry: entry.key):
        entry = next(group)
        tally.duplicates += sum(1 for _ in group)  # noqa: B031 (the rest of the group)
        bucket = policy.bucket(entry)
        if bucket is None:
            continue
        if excluded(key):
            tally.excluded += 1
            continue
        tally.found[names[bucket]][entry.source] += 1
        if policy.quota is None or ranks[bucket] < policy.quota:
            tally.kept[names[bucket]][entry.source] += 1
            tally.kept_tokens[names[bucket]] += entry.tokens
            yield entry, bucket, ranks[bucket]
            ranks[bucket] += 1


class ChooseStep(Step):
    """Writes `winners.npy`, sorted by file and row, and `chosen.json`. One task.

    Args:
        exclude: builds whose documents must not win.
    """

    name = "choose"

    def __init__(
        self, folder: Path, policy: ByLength | ByPosition, exclude: tuple[Path, ...], seed: int, max_bad_rows: int
    ) -> None:
        super().__init__(folder)
        self.policy, self.exclude, self.seed, self.max_bad_rows = policy, exclude, seed, max_bad_rows

    def task(self, rank: int, tasks: int) -> None:
        reading, runs = self._readings()
        taken = {sampling_key(identity, self.seed) for build in self.exclude for identity in build_ids(build)}
        tally = Tally()
        chunks: list[np.ndarray] = []
        rows: list[tuple] = []
        for done, (entry, bucket, place) in enumerate(
            choose(self._merged(runs), self.policy, taken.__contains__, tally), 1
        ):
            rows.append((entry.file, entry.row, bucket, place, entry.tokens, entry.key.encode()))
            if len(rows) >= _CHUNK:
                chunks.append(np.array(rows, WINNER))
                rows = []
            if done % 1000 == 0:
                self.tick(rank, done)
        winners = np.concatenate([*chunks, np.array(rows, WINNER)])
        winners = winners[np.lexsort((winners["row"], winners["file"]))]
        with atomic_write(self.work / "winners.npy") as file:
            np.save(file, winners)
        with atomic_write(self.work / "chosen.json") as file:
            file.write(json.dumps({"reading": asdict(reading), "tally": vars(tally)}).encode())

    def _readings(self) -> tuple[Reading, list[Path]]:
        """The sum of what the tasks read, and the files with their entries."""
        total, bad, runs = Reading(), BadRows(self.max_bad_rows), []
        for path in sorted((self.work / "index").glob("*.json")):
            record = json.loads(path.read_bytes())
            reading = Reading(**record["reading"])
            bad.merge(reading.bad_rows, reading.bad_named)
            total.add(reading)
            runs += [path.with_name(f"{path.stem}-{run:05d}.keys") for run in range(record["runs"])]
        total.bad_named = bad.named
        if total.rows == 0:
            raise UsageError("The corpus holds no document.", "Look at the source: its files have no usable rows.")
        return total, runs

    def _merged(self, runs: list[Path]) -> Iterator[Entry]:
        level = 0
        while len(runs) > _OPEN_FILES:
            groups = [runs[i : i + _OPEN_FILES] for i in range(0, len(runs), _OPEN_FILES)]
            runs = [self.work / "index" / f"merged-{level}-{i}.keys" for i in range(len(groups))]
            for path, group in zip(runs, groups, strict=True):
                with atomic_write(path) as file:
                    file.writelines(line.encode() for line in merge_lines(group))
            level += 1
        return map(Entry.parse, merge_lines(runs))


def merge_lines(paths: list[Path]) -> Iterator[str]:
    """Lines of sorted files in one order; the order of lines is that of their entries."""
    with ExitStack() as stack:
        yield from heapq.merge(*[stack.enter_context(open(path, encoding="utf-8", newline="\n")) for path in paths])


def build_ids(build: Path) -> Iterator[str]:
    """Identities of all documents of a build."""
    ids = build / "ids.txt"
    if ids.is_file():
        with open(ids, encoding="ascii") as file:
            yield from (line.strip() for line in file)
        return
    for path in sorted(build.rglob("*.jsonl.gz")):
        yield from (document_id(row["text"]) for row in iter_rows(path) if "text" in row)


def read_chosen(work: Path) -> dict[str, Any]:
    return json.loads((work / "chosen.json").read_bytes())
