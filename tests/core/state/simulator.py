"""A slow reference of what a memory state holds: plain lists, no log, no index. No torch, so that it starts fast."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np

from mplus_cli.core.state.frame import Block, Content
from mplus_cli.core.state.store import StateStore

LAYERS, WIDTH, KEY, SHORT, CAPACITY = 2, 8, 3, 12, 20


class Token(NamedTuple):
    created: int
    value: bytes
    key: bytes


class Simulator:
    """Writes random memory tokens, drops random ones, evicts the oldest arrivals; a pure function of its seed.

    Args:
        initial: tokens that the memory begins with, in short-term and in long-term memory, as a checkpoint's would.
        capacity: of long-term memory; 0 for none.
    """

    def __init__(self, seed: int, initial: tuple[int, int] = (0, 0), capacity: int = CAPACITY) -> None:
        self.random, self.capacity, self.created = random.Random(seed), capacity, 0
        self.short = [[self._token(-n) for n in range(initial[0], 0, -1)] for _ in range(LAYERS)]
        before = [-initial[0] - 1 - n for n in range(initial[1] if capacity else 0)]
        self.long = [[self._token(n) for n in self.random.sample(before, len(before))] for _ in range(LAYERS)]
        self.journal: list[tuple[list[list[Token]], list[list[Token]], dict | None]] = []

    def _token(self, created: int) -> Token:
        return Token(created, self.random.randbytes(4 * WIDTH), self.random.randbytes(4 * KEY))

    def write(self, count: int, source: str | None = None) -> None:
        """One write of `count` tokens per layer."""
        made = [[self._token(self.created + n) for n in range(count)] for _ in range(LAYERS)]
        dropped = []
        for layer in range(LAYERS):
            excess = max(0, len(self.short[layer]) + count - SHORT)
            gone = sorted(self.random.sample(self.short[layer], excess))
            self.short[layer] = [token for token in self.short[layer] if token not in gone] + made[layer]
            if self.capacity:
                self.long[layer] = (self.long[layer] + gone)[-self.capacity :]
            dropped.append(gone)
        self.created += count
        note = source and {"source": source, "sha256": source.encode().hex(), "start": 0, "end": count, "tokens": count}
        self.journal.append((made, dropped, note or None))

    def base(self, job=None) -> Content:
        """The first frame, made of what is held now."""
        held = [token for part in (self.short, self.long) for layer in part for token in layer]
        flat = [token for layer in self.long for token in layer]
        index = {
            "short_created": np.array([[t.created for t in layer] for layer in self.short], np.int64),
            "long_created": np.array([t.created for t in flat], np.int64),
            "long_count": np.array([len(layer) for layer in self.long], np.int64),
            "merged_count": np.zeros(LAYERS, np.int64),
            "recall_frequency": np.zeros(0, np.float32),
            "writes": np.zeros((0, 2), np.int64),
        }
        record = self._record([], job) | {"identity": {"seed": 0, "eviction": "oldest"}, "created_total": self.created}
        values = Block("F32", (len(held), WIDTH), [_array([t.value for t in held], WIDTH)])
        keys = Block("F32", (len(flat), KEY), [_array([t.key for t in flat], KEY)]) if self.capacity else None
        return Content("base", values, keys, index, record)

    def commit(self, job=None) -> Content:
        """The frame of all writes since the last one."""
        made = [[t for write, _, _ in self.journal for t in write[layer]] for layer in range(LAYERS)]
        gone = [[t for _, dropped, _ in self.journal for t in dropped[layer]] for layer in range(LAYERS)]
        firsts = [[write[0][0].created, len(write[0])] for write, _, _ in self.journal]
        self.arrived = getattr(self, "arrived", 0) + len(gone[0])
        index = {
            "dropped": np.array([[t.created for t in layer] for layer in gone], np.int64).reshape(LAYERS, -1),
            "writes": np.array(firsts, np.int64).reshape(-1, 2),
            "evicted": np.zeros(LAYERS, np.int64),
        }
        record = self._record([note for _, _, note in self.journal], job)
        self.journal = []
        values = keys = None
        if made[0]:
            pieces = [_array([t.value for t in layer], WIDTH) for layer in made]
            values = Block("F32", (LAYERS, len(made[0]), WIDTH), pieces)
        if self.capacity:
            keys = Block("F32", (LAYERS, len(gone[0]), KEY), [_array([t.key for t in layer], KEY) for layer in gone])
        return Content("commit", values, keys, index, record)

    def commit_to(self, store: StateStore, job=None) -> None:
        content = self.commit(job)
        if self.capacity:
            added = content.index["dropped"].shape[1]
            ends = [store.log.arrived(layer) + added for layer in range(LAYERS)]
            content.index["evicted"] = np.array([e - len(n) for e, n in zip(ends, self.long, strict=True)], np.int64)
        store.append(content)

    def _record(self, notes: list, job) -> dict:
        return {"notes": notes, "job": job, "time": "", "pending": 0, "writes_since_merge": 0}

    def content(self) -> tuple:
        """What is held, in order, to compare with `content_of`."""
        short = [[(t.created, t.value) for t in layer] for layer in self.short]
        long = [[tuple(t) for t in layer] for layer in self.long]
        return self.created, short, long


def content_of(store: StateStore) -> tuple:
    """The same, read from a state file."""
    log, keys = store.log, store.keys() or [np.zeros((0, KEY), np.float32)] * LAYERS

    def held(layer: int, created: np.ndarray) -> list[tuple]:
        return [(int(c), row.tobytes()) for c, row in zip(created, store.take(layer, created), strict=True)]

    short = [held(layer, created) for layer, created in enumerate(log.short())]
    long = [
        [(*token, key.tobytes()) for token, key in zip(held(layer, log.long(layer)), keys[layer], strict=True)]
        for layer in range(LAYERS)
    ]
    return log.created_total, short, long


def _array(rows: list[bytes], width: int) -> np.ndarray:
    return np.frombuffer(b"".join(rows), np.float32).reshape(-1, width)
