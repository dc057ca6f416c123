"""First stage: look at every document once and note those of a wanted length, ordered by a keyed hash of their text.

The smallest keys win. A key depends on the text and the seed alone, so it does not matter who reads which file, when,
or in which order; documents with the same key are exact duplicates.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mplus_cli.data.building.corpus import Corpus, CorpusFile
from mplus_cli.data.building.engine import Step
from mplus_cli.data.building.identity import document_id, sampling_key
from mplus_cli.data.building.lengths import LengthBounds, TokenCounter, load_counter
from mplus_cli.data.building.manifest import Tokenizer
from mplus_cli.data.building.rows import BadRows, Fields, Row, read_rows
from mplus_cli.data.building.shards import atomic_write

_BATCH_CHARACTERS = 1 << 18
_RUN_ENTRIES = 100_000


@dataclass(frozen=True, order=True)
class Entry:
    """One candidate. The order is that of the sampling; among duplicates the first in the corpus stands for all."""

    key: str
    file: int
    row: int
    tokens: int
    source: str

    def line(self) -> str:
        return f"{self.key} {self.file:08d} {self.row:012d} {self.tokens} {' '.join(self.source.split())}\n"

    @classmethod
    def parse(cls, line: str) -> Entry:
        key, file, row, tokens, source = line.rstrip("\n").split(" ", 4)
        return cls(key, int(file), int(row), int(tokens), source)


@dataclass
class Reading:
    """What a task read; the sum over all tasks goes into the manifest."""

    rows: int = 0
    tokenized: int = 0
    tokens: int = 0
    skipped_short: int = 0
    skipped_long: int = 0
    outside: int = 0
    bad_rows: int = 0
    bad_named: list[str] = field(default_factory=list)

    def add(self, other: Reading) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Lengths:
    """Buckets of token counts: edges [4096, 8192] make the one bucket 4096 <= tokens < 8192.

    Attributes:
        edges: ascending; empty for one bucket of everything.
    """

    edges: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        return [f"{short(low)}-{short(high)}" for low, high in zip(self.edges, self.edges[1:], strict=False)]

    def bucket(self, tokens: int) -> int | None:
        """Index of the bucket of a document with so many tokens."""
        place = bisect_right(self.edges, tokens) - 1
        return place if 0 <= place < len(self.edges) - 1 else None


def short(tokens: int) -> str:
    """4096 -> 4k."""
    return f"{tokens // 1024}k" if tokens and tokens % 1024 == 0 else str(tokens)


class IndexStep(Step):
    """Writes `index/RANK-RUN.keys` (sorted entries) and `index/RANK.json` (what was read) for the files of a task.

    Args:
        tokenizer: counts with `work/tokenizer.json`; None: nothing is counted and all lengths are wanted.
        edges: of the buckets; empty: all lengths are wanted.
    """

    name = "index"

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer | None,
        edges: tuple[int, ...],
        seed: int,
        fields: Fields,
        max_bad_rows: int,
    ) -> None:
        super().__init__(folder)
        self.tokenizer, self.edges, self.seed, self.fields = tokenizer, edges, seed, fields
        self.max_bad_rows = max_bad_rows

    def _counter(self) -> TokenCounter | None:
        if self.tokenizer is None:
            return None
        return load_counter(self.work / "tokenizer.json", self.tokenizer.sha256)

    def task(self, rank: int, tasks: int) -> None:
        corpus = Corpus.load(self.work / "corpus.json")
        reading, bad = Reading(), BadRows(self.max_bad_rows)
        runs, entries, done = 0, [], 0
        for number in range(rank, len(corpus.files), tasks):
            for entry in self._file(corpus, number, reading, bad, rank, done):
                entries.append(entry)
                if len(entries) >= _RUN_ENTRIES:
                    self._write_run(rank, runs, entries)
                    runs, entries = runs + 1, []
            done += corpus.files[number].bytes
        self._write_run(rank, runs, entries)
        reading.bad_rows, reading.bad_named = bad.count, bad.named
        with atomic_write(self.work / "index" / f"{rank:05d}.json") as file:
            file.write(json.dumps({"runs": runs + 1, "reading": asdict(reading)}).encode())
        self.tick(rank, done, last=True)

    def _write_run(self, rank: int, run: int, entries: list[Entry]) -> None:
        with atomic_write(self.work / "index" / f"{rank:05d}-{run:05d}.keys") as file:
            file.writelines(entry.line().encode() for entry in sorted(entries))

    def _file(
        self, corpus: Corpus, number: int, reading: Reading, bad: BadRows, rank: int, done: int
    ) -> Iterator[Entry]:
        batch: list[Row] = []
        size = 0
        for row, text in self._candidates(corpus.files[number], reading, bad, lambda at: self.tick(rank, done + at)):
            batch.append(row)
            size += len(text)
            if size >= _BATCH_CHARACTERS:
                yield from self._entries(number, batch, reading)
                batch, size = [], 0
        yield from self._entries(number, batch, reading)

    def _candidates(
        self, file: CorpusFile, reading: Reading, bad: BadRows, progress: Callable[[int], None]
    ) -> Iterator[tuple[Row, str]]:
        """Rows that may be of a wanted length, with their text."""
        counter = self._counter()
        bounds = counter.bounds if counter and self.edges else LengthBounds(False)
        low, high = (self.edges[0], self.edges[-1]) if self.edges else (0, 0)
        for row in read_rows(
            file.path,
            self.fields,
            bad,
            name=file.name,
            stop=file.rows,
            short=lambda line: bounds.short_line(line, low),
            progress=progress,
        ):
            reading.rows += 1
            if row.text is None or bounds.surely_shorter(row.text, low):
                reading.skipped_short += 1
            elif bounds.surely_longer(row.text, high):
                reading.skipped_long += 1
            else:
                yield row, row.text

    def _entries(self, number: int, batch: list[Row], reading: Reading) -> Iterator[Entry]:
        texts = [row.text for row in batch if row.text is not None]
        counter = self._counter()
        counts = counter.counts(texts) if counter and texts else [0] * len(texts)
        reading.tokenized += len(texts) if counter else 0
        reading.tokens += sum(counts)
        lengths = Lengths(self.edges)
        for row, text, tokens in zip(batch, texts, counts, strict=True):
            if self.edges and lengths.bucket(tokens) is None:
                reading.outside += 1
                continue
            yield Entry(sampling_key(document_id(text), self.seed), number, row.number, tokens, row.source)
