"""What is in a memory state, counted: sources, fills, ages, sizes. Reads the index only."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mplus_cli.core.state.file import StateFile
from mplus_cli.core.state.frame import DTYPES
from mplus_cli.core.state.log import StateLog


def sources(log: StateLog) -> list[dict[str, Any]]:
    """Every source that was ever injected, in order of its first write.

    Returns:
        Per (name, sha256): `source`, `sha256`, `writes`, `tokens` (of text), `start` and `end` (characters covered),
        `time` (of the last write), and its memory tokens now, over all layers: `short_term`, `long_term`.
    """
    groups: dict[tuple[str, str], int] = {}
    out: list[dict[str, Any]] = []
    group_of = np.full(len(log.notes) + 1, -1)  # the last entry is for tokens of unknown origin
    for number, note in enumerate(log.notes):
        if note is None:
            continue
        key = (str(note.get("source", "")), str(note.get("sha256", "")))
        if key not in groups:
            groups[key] = len(out)
            entry: dict[str, Any] = {"source": key[0], "sha256": key[1], "writes": 0, "tokens": 0}
            out.append(entry | {"start": None, "end": None, "time": None})
        group_of[number] = groups[key]
        entry = out[groups[key]]
        entry["writes"] += 1
        entry["tokens"] += _number(note.get("tokens"))
        entry["start"] = min((n for n in (entry["start"], note.get("start")) if isinstance(n, int)), default=None)
        entry["end"] = max((n for n in (entry["end"], note.get("end")) if isinstance(n, int)), default=None)
        entry["time"] = note.get("time") or entry["time"]
    short, long = log.short(), [log.long(layer) for layer in range(log.layers)]
    for name, held in (("short_term", short), ("long_term", long)):
        group = np.concatenate([group_of[log.write_of(created)] for created in held])
        counts = np.bincount(group[group >= 0], minlength=len(out))
        for entry, count in zip(out, counts.tolist(), strict=True):
            entry[name] = count
    return out


def ages(log: StateLog) -> list[dict[str, int]]:
    """Memory tokens over all layers by age, in steps that double, from one write's worth on.

    Age counts the memory tokens written since; a step covers `from` <= age < `to`.
    """
    step = max(int(log.identity.get("memory_tokens_per_write") or 1), 1)
    now = log.created_total - 1
    held = {"short_term": list(log.short()), "long_term": [log.long(layer) for layer in range(log.layers)]}
    all_ages = {name: now - np.concatenate(parts) for name, parts in held.items()}
    oldest = max((int(part.max()) for part in all_ages.values() if len(part)), default=-1)
    edges = [0, step]
    while edges[-1] <= oldest:
        edges.append(2 * edges[-1])
    counts = {name: np.histogram(part, edges)[0].tolist() for name, part in all_ages.items()}
    rows = zip(edges[:-1], edges[1:], counts["short_term"], counts["long_term"], strict=True)
    return [{"from": low, "to": high, "short_term": short, "long_term": long} for low, high, short, long in rows]


def dead_bytes(file: StateFile, log: StateLog) -> int:
    """Bytes of values and keys in the file that memory no longer holds."""
    row = log.width * np.dtype(DTYPES[log.dtype]).itemsize
    long = sum(len(log.alive(layer)) for layer in range(log.layers))
    stored = sum(block.size for frame in file.frames for block in (frame.values, frame.keys) if block is not None)
    key = log.key_size * np.dtype(DTYPES[log.key_dtype]).itemsize if log.has_long_term else 0
    return stored - (log.short().size + long) * row - long * key


def summary(file: StateFile, log: StateLog) -> dict[str, Any]:
    """The state at a glance, ready for JSON.

    `long_term` counts tokens per layer; where layers differ (after forgetting), `per_layer` has them all and
    `tokens` the fewest.
    """
    identity = log.identity
    long = [len(log.alive(layer)) for layer in range(log.layers)]
    arrived = [log.arrived(layer) for layer in range(log.layers)]
    return {
        "path": str(file.path),
        "format": file.tip.version,
        "model": identity.get("model"),
        "layers": log.layers,
        "hidden_size": log.hidden_size,
        "dtype": identity.get("dtype"),
        "values": log.values,
        "seed": identity.get("seed"),
        "updated": log.time,
        "commits": len(file.frames) - 1,
        "writes": len(log.notes),
        "tokens": sum(_number(note.get("tokens")) for note in log.notes if note),
        "memory_tokens_created": log.created_total,
        "short_term": {"tokens": int(log.short().shape[1]), "capacity": identity.get("short_term_size")},
        "long_term": {
            "tokens": min(long, default=0),
            "capacity": identity.get("long_term_capacity"),
            "evicted": max((a - n for a, n in zip(arrived, long, strict=True)), default=0),
            "per_layer": long if len(set(long)) > 1 else None,
        },
        "sources": len({(n.get("source"), n.get("sha256")) for n in log.notes if n}),
        "file_bytes": os.stat(file.path).st_size if file.published else file.length,
        "dead_bytes": dead_bytes(file, log),
        "ages": ages(log),
        "job": log.job,
    }


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
