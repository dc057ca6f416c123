"""Put texts into memory: chunk by chunk, committed every two seconds, resumed by the same call where it stopped.

The state keeps a `job` with every commit: {"key", "source", "char", "chunk", "done"}. Its key is a hash of the sources,
the chunk size and the model, so that the same command continues an interrupted job and any other starts its own.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.pipeline import WriteText
from mplus_cli.data.chunking import Chunk, chunks
from mplus_cli.data.sources import Source
from mplus_cli.machine import resident_memory

if TYPE_CHECKING:
    from mplus_cli.core.state.memory_state import MemoryState

COMMIT_SECONDS = 2.0
COMMIT_BYTES = 64_000_000
COMPACTION_BYTES = 256_000_000  # smaller files are left to `mplus memory compact`


@dataclass
class InjectReport:
    """What an injection did.

    Attributes:
        injected, skipped: names of sources; skipped ones were in memory already.
        resumed: chunks of an earlier, interrupted run of the same job that were not injected again.
        interrupted: whether it was stopped before the end; everything counted here is committed.
        slowest_chunk: seconds.
    """

    injected: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    resumed: int = 0
    tokens: int = 0
    chunks: int = 0
    seconds: float = 0.0
    slowest_chunk: float = 0.0
    commits: int = 0
    interrupted: bool = False

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class InjectProgress:
    """A snapshot after a chunk. Fills and capacities are memory tokens per layer; rss is bytes of main memory."""

    source: str
    chars_done: int
    chars_total: int
    tokens: int
    chunks: int
    tokens_per_second: float
    short_term: int
    short_term_size: int
    long_term: int
    long_term_capacity: int
    rss: int


@dataclass
class Position:
    """Where a job stands: `chunk` chunks and `char` characters of source number `source` are in memory."""

    source: int = 0
    char: int = 0
    chunk: int = 0


@dataclass(frozen=True)
class _Step:
    """Where a job stands after a chunk, or at the begin or the end of a source (no chunk)."""

    position: Position
    chunk: Chunk | None = None


def job_key(sources: Sequence[Source], chunk_size: int, fingerprint: dict) -> str:
    """The identity of an injection: which texts in which order, cut how, by which model."""
    model = [fingerprint["config_sha256"], fingerprint["weights_sha256"]]
    return hashlib.sha256(json.dumps([[s.sha256 for s in sources], chunk_size, model]).encode()).hexdigest()


class Injection:
    """One injection into the row of a one-row memory, and its commits to a state file.

    Args:
        state: open for writing; `memory` is what it loaded. None keeps the writes in memory only.
        chunk_size: tokens per write; None for what the model was trained with.
        again: inject sources that are in memory already once more.
        stages: groups of layers that write at once (see `core.pipeline`).
    """

    def __init__(
        self,
        model: MPlusForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        memory: Memory,
        state: MemoryState | None,
        sources: Sequence[Source],
        chunk_size: int | None = None,
        again: bool = False,
        on_progress: Callable[[InjectProgress], None] | None = None,
        stages: int = 1,
    ) -> None:
        self.model, self.tokenizer, self.memory, self.state = model, tokenizer, memory, state
        self.sources = list(sources)
        self.chunk_size = chunk_size or model.config.chunk_size
        self.on_progress, self.again, self.stages = on_progress, again, stages
        self.key = job_key(sources, self.chunk_size, model.fingerprint())
        self.position = self._earlier_position()
        self.skip = set() if again else self._present()
        self.report = InjectReport(
            skipped=[self.sources[i].name for i in sorted(self.skip)], resumed=self.position.chunk
        )
        self._lengths = [0 if i in self.skip else len(s.text) for i, s in enumerate(self.sources)]
        self._pending_bytes = 0
        self._compaction_at = COMPACTION_BYTES
        self._start = self._last_commit = time.monotonic()

    @property
    def resumes(self) -> bool:
        """Whether an earlier run of the same job was interrupted and is continued."""
        return self.position != Position()

    def run(self) -> InjectReport:
        """Inject what is not in memory yet. Returns early, with all done work committed, when interrupted by SIGINT."""
        self._start = self._last_commit = time.monotonic()
        with stop_request() as stopped:
            self._inject(stopped)
            if self.report.chunks or self.resumes:
                self._commit(done=not self.report.interrupted)
        self.report.seconds = time.monotonic() - self._start
        return self.report

    def _earlier_position(self) -> Position:
        job = self.state.job if self.state is not None else None
        if not job or job.get("key") != self.key or job.get("done") or job["source"] >= len(self.sources):
            return Position()
        return Position(job["source"], job["char"], job["chunk"])

    def _present(self) -> set[int]:
        """Numbers of the sources that need no injection: held from first to last character, or given twice.

        In a resumed job only those after its position count: the ones before it are its own work.
        """
        whole = {(sha256, end) for sha256, start, end in self._held() if start == 0}
        seen: set[str] = set()
        present = set()
        for index, source in enumerate(self.sources):
            if source.sha256 in seen or (source.sha256, len(source.text)) in whole:
                present.add(index)
            seen.add(source.sha256)
        return {i for i in present if i > self.position.source} if self.resumes else present

    def partial(self) -> list[str]:
        """Names of sources that are injected from the start although an earlier injection left a part of them."""
        begun = {sha256 for sha256, _, _ in self._held()}
        resumed = self.position.source if self.resumes else -1
        return [
            source.name
            for index, source in enumerate(self.sources)
            if source.sha256 in begun and index > resumed and index not in self.skip and not self.again
        ]

    def _held(self) -> list[tuple[str, int | None, int | None]]:
        """sha256 and characters covered, per source in the state."""
        return [(held["sha256"], held["start"], held["end"]) for held in (self.state.sources() if self.state else [])]

    def _inject(self, stopped: Callable[[], bool]) -> None:
        """Write what is not in memory yet; once a stop is asked for, what is under way and no more."""
        steps: deque[_Step] = deque()
        began = time.monotonic()
        with closing(self.model.inject_stream(self._texts(stopped, steps), self.memory, self.stages)) as written:
            for _ in written:
                chunk = self._advance(steps)
                assert chunk is not None  # a step for every text
                self._count(chunk, time.monotonic() - began)
                self._show()
                if self._pending_bytes > COMMIT_BYTES or time.monotonic() - self._last_commit > COMMIT_SECONDS:
                    self._commit(done=False)
                began = time.monotonic()
        self._advance(steps)

    def _texts(self, stopped: Callable[[], bool], steps: deque[_Step]) -> Iterator[WriteText]:
        """What to write, in order; several may be taken before the first is in memory. `steps` says what each is."""
        start = self.position
        for index, source in enumerate(self.sources):
            if index < start.source or index in self.skip:
                continue
            done = start.chunk if index == start.source else 0
            steps.append(_Step(Position(index, start.char if done else 0, done)))
            self.report.injected.append(source.name)
            for number, chunk in enumerate(chunks(source.text, self.tokenizer, self.chunk_size)):
                if number < done:
                    continue
                if stopped():
                    self.report.interrupted = True
                    return
                steps.append(_Step(Position(index, chunk.end, number + 1), chunk))
                yield WriteText(torch.tensor([chunk.ids]), notes=[_note(source, chunk)])
            steps.append(_Step(Position(index + 1)))

    def _advance(self, steps: deque[_Step]) -> Chunk | None:
        """Go on past the next chunk, which is in memory now, and return it; None where no chunk is left."""
        while steps:
            step = steps.popleft()
            self.position = step.position
            if step.chunk is not None:
                return step.chunk
        return None

    def _count(self, chunk: Chunk, seconds: float) -> None:
        if self.memory.journal is not None:
            record = self.memory.journal[0][-1]
            self._pending_bytes += record.values.nbytes + (0 if record.keys is None else record.keys.nbytes)
        self.report.tokens += len(chunk.ids)
        self.report.chunks += 1
        self.report.slowest_chunk = max(self.report.slowest_chunk, seconds)
        self.report.seconds = time.monotonic() - self._start

    def _commit(self, done: bool) -> None:
        if self.state is None:
            return
        place = self.position
        job = {"key": self.key, "source": place.source, "char": place.char, "chunk": place.chunk, "done": done}
        self.state.commit(self.memory, job)
        self._pending_bytes = 0
        self.report.commits += 1
        self._compact_if_grown()
        self._last_commit = time.monotonic()

    def _compact_if_grown(self) -> None:
        """Give back space when the file has doubled and most of it is dead: amortised, a cost of what is new.

        Without long-term memory, or beyond its capacity, every write leaves values behind that nothing will read.
        """
        if self.state is None or (length := self.state.path.stat().st_size) < self._compaction_at:
            return
        if 2 * self.state.dead_bytes > length:
            self.state.compact()
            length = self.state.path.stat().st_size
        self._compaction_at = max(2 * length, COMPACTION_BYTES)

    def _show(self) -> None:
        if self.on_progress is None:
            return
        index = self.position.source
        config, memory = self.model.config, self.memory
        self.on_progress(
            InjectProgress(
                source=self.sources[index].name,
                chars_done=sum(self._lengths[:index]) + self.position.char,
                chars_total=sum(self._lengths),
                tokens=self.report.tokens,
                chunks=self.report.chunks,
                tokens_per_second=self.report.tokens_per_second,
                short_term=memory.short_term.fill[0],
                short_term_size=config.short_term_size,
                long_term=len(memory.long_term[0]) if memory.long_term else 0,
                long_term_capacity=config.long_term_capacity,
                rss=resident_memory(),
            )
        )


def _note(source: Source, chunk: Chunk) -> dict:
    """Provenance of a chunk, as the state keeps it."""
    return {
        "source": source.name,
        "sha256": source.sha256,
        "start": chunk.start,
        "end": chunk.end,
        "tokens": len(chunk.ids),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request that is asked for between chunks, so that no write is cut in half.

    A second Ctrl-C interrupts at once; what was not committed is then lost, and nothing else.
    """
    asked = False

    def on_signal(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
