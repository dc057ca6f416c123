"""One memory of `integrity` on its way through all its updates, kept in a file so that it can go on after anything.

The file is an ordinary memory state (`mplus memory`, `mplus ask` and the others read it), with the place in the stream,
what drift is measured against, and the answers that still count as its job. What a write does depends on the order of
memory tokens alone, not on where they lie, so going on gives the same tokens bit for bit. Reading sums over tokens
where they lie: so before every read short-term memory is put in order, and a restored long-term memory begins where it
began before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from mplus_cli.core.fork import fork
from mplus_cli.core.memory import Memory
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.errors import StateError
from mplus_cli.evaluation.items import Answer, Item, Question
from mplus_cli.evaluation.metrics import exact_match
from mplus_cli.evaluation.systems.memory_system import MemorySystem
from mplus_cli.evaluation.systems.walk import Stand
from mplus_cli.evaluation.task import Task, Tell
from mplus_cli.evaluation.tasks import integrity_measures as measures
from mplus_cli.evaluation.tasks.integrity_stream import Asked, Book, ChronicleBook, Endless, Place, numbered
from mplus_cli.inference.injection import stop_request

SAVE_SECONDS = 60.0  # between two saves, at least
SAVE_SHARE = 0.05  # of the time that saving may take
TELL_SECONDS = 0.2


@dataclass(frozen=True)
class Given:
    """An answer.

    Attributes:
        write: number of the write that told what is asked (from 1); in the probe text for fixed questions.
    """

    write: int
    prompt: str
    reference: str
    text: str

    @property
    def right(self) -> bool:
        return bool(exact_match({"text": self.text}, [self.reference]))


class Run:
    """The way of one item.

    Args:
        folder: of the task and system; the memory is kept in `memory/ITEM.pt` there.
        tell: called with the part of the updates that is done, and how many that is.
    """

    def __init__(self, task: Task, system: MemorySystem, item: Item, folder: Path, tell: Tell) -> None:
        self.task, self.system, self.item, self.tell = task, system, item, tell
        self.path = folder / "memory" / f"{item.id}.pt"
        self.about: Mapping[str, Any] = item.metadata
        self.points = {int(question.metadata["updates"]): question for question in item.questions}
        self.first = int(self.about["start"])
        size = system.options.chunk_size or system.config.chunk_size
        shortest = system.config.memory_tokens_per_write
        self.stream = Endless(self.about["seed"], item.documents, system.tokenizer, size, shortest)
        self.probe = self._probe_text(size) if self.about["ask"] != "newest" else None
        self.memory, self.place, self.updates, self.tokens = system.new_memory([item]), Place(), 0, 0
        self.start: list[measures.Moments | None] = []
        self.recent: deque[Given] = deque()
        self.seconds = {"remember": 0.0, "ask": 0.0}
        self._saved, self._save_cost = time.monotonic(), 0.0

    def answers(self) -> Iterator[Answer]:
        """An answer for every point, as it is reached.

        Raises:
            KeyboardInterrupt: at the first Ctrl-C, when everything has been saved.
            StateError: the memory that was kept cannot be read.
        """
        self._restore()
        began, from_updates, last = time.monotonic(), self.updates, max(self.points)
        told = 0.0
        with stop_request() as stopped:
            for book, place in self.stream.walk(self.place):
                if stopped():
                    self.save()
                    raise KeyboardInterrupt
                self._write(book, place.chunk)
                self.place = Place(place.book, place.chunk + 1)
                if self.updates in self.points:
                    yield self._answer(self.points[self.updates])
                if self.updates == last:
                    break
                now = time.monotonic()
                if now - told > TELL_SECONDS:
                    told, rate = now, (self.updates - from_updates) / max(now - began, 1e-9)
                    self.tell(self.updates / last, f"{self.updates:,} of {last:,} updates, {rate:,.0f}/s")
                if now - self._saved > max(SAVE_SECONDS, self._save_cost / SAVE_SHARE):
                    self.save()
            self.save()

    # -- writing and asking --

    @torch.inference_mode()
    def _write(self, book: Book, chunk: int) -> None:
        began = time.perf_counter()
        self.system.model.inject(torch.tensor([book.chunks[chunk]]), self.memory)
        self.updates, self.tokens = self.updates + 1, self.tokens + len(book.chunks[chunk])
        written = time.perf_counter()
        if self.updates == self.first:
            self._settle()
            self.start = measures.moments(self.memory)
        if self._is_asked() and (asked := book.question(chunk)):
            self.recent.append(self._ask(self.memory, [asked], [self.updates])[0])
        self.seconds["remember"] += written - began
        self.seconds["ask"] += time.perf_counter() - written

    def _is_asked(self) -> bool:
        """Whether this write is among the newest of a point to come."""
        reach = range(self.updates, self.updates + self.about["questions"])
        return self.about["ask"] != "fixed" and any(point in reach for point in self.points)

    def _settle(self) -> None:
        """Let short-term memory lie in the order of its tokens."""
        self.memory.short_term.load(0, *self.memory.short_term.ordered(0))

    def _ask(self, memory: Memory, asked: Sequence[Asked], writes: Sequence[int]) -> list[Given]:
        """Answers to questions, read from a memory as it stands."""
        memory.short_term.load(0, *memory.short_term.ordered(0))
        found, size = [], max(1, self.system.settings.batch)
        for first in range(0, len(asked), size):
            batch = asked[first : first + size]
            questions = [Question("q", one.prompt, (one.reference,), 0, 16) for one in batch]
            view = self.system.view(memory.rows([0] * len(batch)))
            stands = [Stand(0, self.item, [one], 0, [], self.updates, self.tokens, 0.0) for one in questions]
            texts = [answer.text for answer in self.system.ask(self.task, view, stands, questions)]
            for one, write, text in zip(batch, writes[first:], texts, strict=False):
                found.append(Given(write, one.prompt, one.reference, text))
        return found

    # -- the fixed questions --

    def _probe_text(self, size: int) -> ChronicleBook:
        """The same for every item and every seed."""
        return ChronicleBook.write(numbered(0, "integrity", "probe"), self.system.tokenizer, size, self.about["probe"])

    @torch.inference_mode()
    def _ask_fixed(self, probe: ChronicleBook) -> list[Given]:
        memory = fork(self.memory)
        for ids in probe.chunks:
            self.system.model.inject(torch.tensor([ids]), memory)
        count = min(self.about["questions"], len(probe.facts))
        chosen = sorted(Random(0).sample(range(len(probe.facts)), count))
        asked = [probe.facts[number] for number in chosen]
        return self._ask(memory, asked, [one.chunk + 1 for one in asked])

    # -- points of measurement --

    def _answer(self, question: Question) -> Answer:
        began = time.perf_counter()
        self._settle()
        layers = measures.measure(self.memory, self.start)
        while self.recent and self.recent[0].write <= self.updates - self.about["questions"]:
            self.recent.popleft()
        newest = list(self.recent)
        fixed = [] if self.probe is None else self._ask_fixed(self.probe)
        long_term = self.memory.long_term
        extra: dict[str, Any] = {
            "updates": self.updates,
            "passes": self.stream.passes(self.place),
            "short_term": self.memory.short_term.fill[0],
            "long_term": len(long_term[0]) if long_term else 0,
            "accuracy": _share(newest or fixed),
            **_counts("newest", newest),
            "fixed": _share(fixed),
            **_counts("fixed", fixed),
            **measures.overall(layers),
            "layers": layers,
        }
        self.seconds["ask"] += time.perf_counter() - began
        seconds, self.seconds = self.seconds, {"remember": 0.0, "ask": 0.0}
        prompt = (newest or fixed)[-1].prompt if newest or fixed else ""
        given: dict[str, Any] = {"prompt": prompt, "context_tokens": self.tokens, "stop": "measured"}
        return Answer(self.item.id, question.id, seconds=seconds, extra=extra, **given)

    # -- keeping --

    def save(self) -> None:
        """Put the memory and everything else in the file's place, as a whole."""
        began = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stores = self.memory.long_term[0].layers if self.memory.long_term else []
        job = {
            "updates": self.updates,
            "tokens": self.tokens,
            "place": asdict(self.place),
            "points": sorted(self.points),
            "start": measures.to_plain(self.start),
            "recent": [asdict(one) for one in self.recent],
            "arrived": [layer.created.start for layer in stores],
        }
        with MemoryState.create(self.path, self.system.model, self.memory, fresh=True, job=job) as state:
            state.commit(self.memory, job)
        self.memory.journal = None
        self._saved = time.monotonic()
        self._save_cost = self._saved - began

    def _restore(self) -> None:
        """Go on from the file, if it comes before the points that are left; else begin."""
        if not self.path.is_file():
            return
        try:
            with MemoryState.open(self.path) as state:
                state.check_model(self.system.model)
                job = state.job
                if job["updates"] < min(self.points) and set(self.points) <= set(job["points"]):
                    self._take(state, job)
        except StateError as error:
            raise StateError(error.message, f"Remove {self.path} to begin {self.item.id} again.") from error

    def _take(self, state: MemoryState, job: Mapping[str, Any]) -> None:
        memory = self.system.new_memory([self.item], initial="empty")
        for store in memory.long_term:
            for layer, start in zip(store.layers, job["arrived"], strict=True):
                for rows in (layer.values, layer.keys, layer.created):
                    rows.skip(start)  # blocks begin where they did, so that sums run over the same pieces
        state.fill(memory)
        self.memory, self.updates, self.tokens = memory, job["updates"], job["tokens"]
        self.place = Place(**job["place"])
        self.start = measures.from_plain(job["start"])
        self.recent = deque(Given(**one) for one in job["recent"])


def _share(given: Sequence[Given]) -> float | None:
    return sum(one.right for one in given) / len(given) if given else None


def _counts(kind: str, given: Sequence[Given]) -> dict[str, Any]:
    right = sum(one.right for one in given)
    return {f"{kind}_asked": len(given), f"{kind}_right": right, f"{kind}_answers": [asdict(one) for one in given]}
