"""Rewriting a memory state: compaction, and forgetting a source. A new file beside the old one, then a rename."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mplus_cli.core.state.frame import DTYPES, Block, Content
from mplus_cli.core.state.store import ROWS, StateStore
from mplus_cli.errors import StateError

MakeKeys = Callable[[int, np.ndarray], np.ndarray]  # (layer, bytes of values [k, row_bytes]) -> retrieval keys [k, r]


@dataclass
class Survivors:
    """What a rewritten state holds; all lists are per layer.

    Attributes:
        short, long: creation indices; `short` ascending and equally many in all layers, `long` in order of arrival.
        keys: of `long`, [A_l, r]; empty without long-term memory.
        frequency: recall frequencies of the first tokens of `long` (rule `recall_frequency`).
        pending: how many of the last ones have none yet.
        writes: numbers of the writes to keep in the provenance, ascending.
    """

    short: list[np.ndarray]
    long: list[np.ndarray]
    keys: list[np.ndarray]
    frequency: list[np.ndarray]
    pending: int
    writes: np.ndarray
    job: Any


def compact(store: StateStore) -> None:
    """Rewrite a state without the values that memory no longer holds."""
    store.succeed(_rewritten(store, _everything(store)))


def forget(store: StateStore, source: str, make_keys: MakeKeys) -> dict[str, Any]:
    """Remove what a source put into both stores, and the record of it, and prove it on the new file.

    Random drop has left different numbers of other sources' tokens in different layers, and short-term memory must hold
    the same number in each; so the oldest of the surplus move to long-term memory, or are dropped where there is none.
    Memory tokens that other sources left afterwards stay; they were made in the presence of what is forgotten.

    Args:
        source: name or sha256, as in `sources`.
        make_keys: gives retrieval keys to the tokens that move.

    Returns:
        `writes`, `removed`, `moved` and `dropped` (memory tokens over all layers), tokens per store `before` and
        `after`, and what was found in the new file: `left` (memory tokens of the source), `values` (rows), `bytes`.

    Raises:
        StateError: no such source; no room (the old state stays); or the proof failed.
    """
    log = store.log
    gone = np.array([number for number, note in enumerate(log.notes) if note and _is_of(note, source)], np.int64)
    if not len(gone):
        known = sorted({str(note.get("source")) for note in log.notes if note})
        named = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
        raise StateError(f"{store.file.path} has no source {source!r}.", f"It has: {named or 'none'}.")
    spans = log.writes.view[:, gone]
    before, bytes_before = _counts(store), store.file.length
    held, surplus = _without(store, gone, source)
    if log.has_long_term:
        _move(store, held, surplus, make_keys)
    moved = sum(map(len, surplus))
    store.succeed(_rewritten(store, held))

    with_proof = StateStore.open(store.file.path)
    try:
        after, left = _counts(with_proof), _count_within(with_proof, spans)
        values, in_memory = with_proof.values.total, sum(sum(part) for part in after.values())
        if left or values != in_memory or any(note and _is_of(note, source) for note in with_proof.log.notes):
            raise StateError(
                f"{source!r} was not wholly removed: {left} memory tokens are left.", "Please report this."
            )
    finally:
        with_proof.close()
    return {
        "source": source,
        "writes": len(gone),
        "removed": sum(map(sum, before.values())) - in_memory - (0 if log.has_long_term else moved),
        "moved": moved if log.has_long_term else 0,
        "dropped": 0 if log.has_long_term else moved,
        "before": before,
        "after": after,
        "left": left,
        "values": values,
        "bytes_before": bytes_before,
        "bytes": store.file.length,
    }


def _everything(store: StateStore) -> Survivors:
    log, layers = store.log, range(store.log.layers)
    long, frequency = [log.long(layer) for layer in layers], [log.frequency(layer) for layer in layers]
    return Survivors(list(log.short()), long, store.keys(), frequency, log.pending, np.arange(len(log.notes)), log.job)


def _without(store: StateStore, gone: np.ndarray, source: str) -> tuple[Survivors, list[np.ndarray]]:
    """What is left without some writes, and per layer the surplus of short-term memory over its emptiest layer."""
    log, held = store.log, _everything(store)
    for layer in range(log.layers):
        stay = ~np.isin(log.write_of(held.long[layer]), gone)
        held.long[layer] = held.long[layer][stay]
        if held.keys:
            held.keys[layer] = held.keys[layer][stay]
        if log.by_recall:
            held.frequency[layer] = _extended(store, held.frequency[layer], len(stay))[stay]
        held.short[layer] = held.short[layer][~np.isin(log.write_of(held.short[layer]), gone)]
    held.pending = 0  # by now the tokens that await merging differ in number between layers, so all count as merged
    held.writes = np.setdiff1d(held.writes, gone)
    held.job = None if _mentions(held.job, source) else held.job
    fewest = min(len(created) for created in held.short)
    surplus = [created[: len(created) - fewest] for created in held.short]
    held.short = [created[len(created) - fewest :] for created in held.short]
    return held, surplus


def _move(store: StateStore, held: Survivors, surplus: list[np.ndarray], make_keys: MakeKeys) -> None:
    """Append tokens of short-term memory to long-term memory, within its capacity."""
    capacity = int(store.log.identity.get("long_term_capacity") or 0)
    for layer, created in enumerate(surplus):
        if not len(created):
            continue
        keys = make_keys(layer, store.take(layer, created))
        held.long[layer] = np.concatenate([held.long[layer], created])[-capacity:]
        held.keys[layer] = np.concatenate([held.keys[layer], keys])[-capacity:]
        if store.log.by_recall:
            held.frequency[layer] = _extended(store, held.frequency[layer], len(held.long[layer]))


def _extended(store: StateStore, frequency: np.ndarray, count: int) -> np.ndarray:
    """Recall frequencies of merged tokens, and behind them those of newly merged ones, `count` in all."""
    initial = float(store.log.identity.get("initial_recall_frequency") or 1.0)
    return np.concatenate([frequency, np.full(count - len(frequency), initial, np.float32)])


def _rewritten(store: StateStore, held: Survivors) -> StateStore:
    """A successor that holds `held` and nothing else, not yet at its path. StateError leaves the old file as it is."""
    log = store.log

    def pieces() -> Iterator[np.ndarray]:
        for part in (held.short, held.long):
            for layer, created in enumerate(part):
                for start in range(0, len(created), ROWS):
                    yield store.take(layer, created[start : start + ROWS]).view(DTYPES[log.dtype])

    counts, short = [len(created) for created in held.long], np.stack(held.short)
    index = {
        "short_created": short,
        "long_created": np.concatenate(held.long),
        "long_count": np.array(counts, np.int64),
        "merged_count": np.array([len(part) for part in held.frequency], np.int64),
        "recall_frequency": np.concatenate(held.frequency).astype("<f4"),
        "writes": log.writes.view.T[held.writes],
    }
    record = {
        "notes": [log.notes[number] for number in held.writes],
        "job": held.job,
        "time": log.time,
        "pending": held.pending,
        "writes_since_merge": log.writes_since_merge,
        "identity": log.identity,
        "created_total": log.created_total,
    }
    values = Block(log.dtype, (short.size + sum(counts), log.width), pieces())
    keys = None
    if log.has_long_term:
        keys = Block(log.key_dtype, (sum(counts), log.key_size), held.keys)
    base = Content("base", values, keys, index, record)
    return StateStore.create(store.file.path, base, replace=True, successor_of=store.writer)


def _counts(store: StateStore) -> dict[str, list[int]]:
    """Memory tokens per layer in each store."""
    log = store.log
    long = [len(log.alive(layer)) for layer in range(log.layers)]
    return {"short_term": [log.short().shape[1]] * log.layers, "long_term": long}


def _count_within(store: StateStore, spans: np.ndarray) -> int:
    """Memory tokens over all layers whose creation index lies in one of the spans [2, W] (first, count)."""
    first, count = spans
    held = [*store.log.short(), *(store.log.long(layer) for layer in range(store.log.layers))]
    total = 0
    for created in held:
        place = np.searchsorted(first, created, side="right") - 1
        total += int(((place >= 0) & (created < first[place] + count[place])).sum())
    return total


def _is_of(note: dict[str, Any], source: str) -> bool:
    return source in (note.get("source"), note.get("sha256"))


def _mentions(job: Any, source: str) -> bool:
    """Whether the name of a source occurs anywhere in a job."""
    if isinstance(job, dict):
        return any(_mentions(part, source) for pair in job.items() for part in pair)
    if isinstance(job, list):
        return any(_mentions(part, source) for part in job)
    return isinstance(job, str) and source in job
