"""Which memory tokens a state holds, replayed from the index of its frames. Reads no values and no keys.

A memory token is named by its layer and creation index. Its value stands in the frame of the write that made it and
never moves; short-term memory is what was created and not dropped, long-term memory what was dropped, in order of
arrival, and not evicted. Arrivals are numbered per layer within a file: first the long-term tokens of the first frame,
then every commit's dropped tokens.

Index tensors of the first frame (kind `base`), for L layers, n short-term tokens per layer, A_l long-term tokens of
layer l (A in all), m_l of them with a recall frequency (the first ones), and W writes that are known:

    values           [L * n + A, d]   short-term memory layer by layer, oldest first; then long-term memory likewise
    keys             [A, r]           of long-term memory (absent without one)
    short_created    int64 [L, n]     creation indices, ascending
    long_created     int64 [A]        in order of arrival
    long_count       int64 [L]        A_l
    merged_count     int64 [L]        m_l, and recall_frequency, float32 [m]
    writes           int64 [W, 2]     creation index of a write's first token, and how many it made per layer

of a commit, for its T new tokens per layer (W writes) and the D tokens per layer that they dropped:

    values           [L, T, d]        creation indices run on from the commit before
    keys             [L, D, r]        of the dropped tokens (absent without long-term memory)
    dropped          int64 [L, D]     creation indices, in order of arrival in long-term memory
    evicted          int64 [L]        arrivals before this number have left long-term memory (rule `oldest`)
    merged           int64 [m]        arrival numbers of merged tokens (rule `recall_frequency`; only when they
                                      changed), with merged_count and recall_frequency as above
    writes           int64 [W, 2]

and of both `value_crc32`, CRC-32 of each row of `values`, and `record`, JSON: `notes` (provenance, one per write),
`job`, `time`, `pending` and `writes_since_merge`; in the first frame also `identity` and `created_total`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mplus_cli.core.state.frame import CODES, SCALE, Frame


class Growing:
    """An array that is extended along its last axis at a cost of what is added, amortised."""

    def __init__(self, dtype: Any, lead: tuple[int, ...] = ()) -> None:
        self._array = np.empty((*lead, 0), dtype)
        self._size = 0

    @property
    def view(self) -> np.ndarray:
        return self._array[..., : self._size]

    def extend(self, new: np.ndarray | list) -> None:
        new = np.asarray(new, self._array.dtype)
        end = self._size + new.shape[-1]
        if end > self._array.shape[-1]:
            grown = np.empty((*self._array.shape[:-1], max(end, 2 * self._array.shape[-1])), self._array.dtype)
            grown[..., : self._size] = self.view
            self._array = grown
        self._array[..., self._size : end] = new
        self._size = end


class StateLog:
    """What the frames of one file say.

    Attributes:
        identity: what the state was made by and for (see `MemoryState`).
        layers, width, dtype: L, elements of a stored value, and their safetensors dtype.
        hidden_size, values: d, and how values are stored (see `core.value_codec`).
        key_size, key_dtype: r and the safetensors dtype of keys; 0 without long-term memory.
        created_total: memory tokens ever created per layer.
        job, pending, writes_since_merge: as of the last commit.
        writes: int64 [2, W]: creation index of the first token of each write, and how many it made.
        notes: provenance of each, as given.
    """

    def __init__(self, base: Frame) -> None:
        """Raises ValueError, as does `apply`, for an index that contradicts itself."""
        if base.kind != "base" or base.values is None:
            raise ValueError("the first frame is not the state that a memory began with")
        index, record = base.index, base.record
        self.identity: dict[str, Any] = dict(record["identity"])
        self.by_recall = self.identity.get("eviction") == "recall_frequency"
        self.base_total = self.created_total = int(record["created_total"])
        self.short_created = _int64(index["short_created"], 2)
        self.layers = len(self.short_created)
        self.dtype, self.width = base.values.dtype, base.values.shape[-1]
        rounded = self.dtype == "U16" and self.identity.get("values") == "bfloat16"
        self.values = CODES.get(self.dtype, "bfloat16" if rounded else "model")
        self.hidden_size = self.width - (SCALE if self.dtype in CODES else 0)
        self.has_long_term = base.keys is not None
        self.key_dtype, self.key_size = ("", 0) if base.keys is None else (base.keys.dtype, base.keys.shape[-1])
        self.long_count, created = _int64(index["long_count"], 1), _int64(index["long_created"], 1)
        self._check_base(base, created)
        self.long_created = np.split(created, np.cumsum(self.long_count)[:-1])
        self.writes = Growing(np.int64, (2,))
        self.notes: list[dict | None] = []
        self._dropped = Growing(np.int64, (self.layers,))
        self._evicted = np.zeros(self.layers, np.int64)
        self._frequency = self._split(index["recall_frequency"], index["merged_count"])
        self._merged = [np.arange(len(frequency)) for frequency in self._frequency]
        self._short: np.ndarray | None = None
        self._take_record(record, _int64(index["writes"], 2))

    @classmethod
    def replay(cls, frames: list[Frame]) -> StateLog:
        """The log of a whole file. Raises ValueError."""
        log = cls(frames[0])
        for frame in frames[1:]:
            log.apply(frame)
        log.check()
        return log

    def _check_base(self, base: Frame, long_created: np.ndarray) -> None:
        short, rows = self.short_created, self.short_created.size + len(long_created)
        numbers = {"F64", "F32", "F16", "U16"}
        if self.dtype not in numbers | CODES.keys() or (self.key_dtype or "F32") not in numbers:
            raise ValueError(f"memory tokens cannot be of type {self.dtype}, nor their keys of type {self.key_dtype}")
        if base.values is None or base.values.shape != (rows, self.width):
            raise ValueError("the first frame has another number of values than of memory tokens")
        if (np.diff(short, axis=1) <= 0).any() or (short >= self.base_total).any():
            raise ValueError("short-term memory of the first frame is not in order of creation")
        count = self.long_count
        if count.shape != (self.layers,) or (count < 0).any() or count.sum() != len(long_created):
            raise ValueError("long-term memory of the first frame has another size than its parts")
        if len(long_created) and (base.keys is None or base.keys.shape[:-1] != long_created.shape):
            raise ValueError("the keys of the first frame do not fit long-term memory")

    def apply(self, frame: Frame) -> None:
        """Take in a commit."""
        index = frame.index
        writes, dropped = _int64(index["writes"], 2), _int64(index["dropped"], 2)
        made = int(writes[:, 1].sum())
        if frame.kind != "commit":
            raise ValueError(f"{frame.name} is of unknown kind {frame.kind!r}")
        follows = writes[:, 0] == self.created_total + np.cumsum(writes[:, 1]) - writes[:, 1]
        if (writes[:, 1] < 1).any() or not follows.all():
            raise ValueError(f"the writes of {frame.name} do not follow those before")
        values = None if frame.values is None else (frame.values.shape, frame.values.dtype)
        if values != (((self.layers, made, self.width), self.dtype) if made else None):
            raise ValueError(f"the values of {frame.name} do not fit its writes")
        keys = None if frame.keys is None else (frame.keys.shape, frame.keys.dtype)
        expected = ((*dropped.shape, self.key_size), self.key_dtype) if self.has_long_term else None
        if len(dropped) != self.layers or keys != expected:
            raise ValueError(f"the tokens dropped by {frame.name} do not fit their keys")
        if self._short is not None:
            self._short = _without(self._short, self.created_total, self.created_total + made, dropped)
        self._dropped.extend(dropped)
        self.created_total += made
        if "merged" in index:
            self._merged = self._split(_int64(index["merged"], 1), index["merged_count"])
            self._frequency = self._split(index["recall_frequency"], index["merged_count"])
        self._evicted = _int64(index["evicted"], 1)
        self._take_record(frame.record, writes)

    def check_next(self, index: dict[str, np.ndarray]) -> None:
        """Raise ValueError if the index of a commit to be written cannot follow on what is here."""
        made = int(index["writes"][:, 1].sum())
        _without(self.short(), self.created_total, self.created_total + made, index["dropped"])
        if self.has_long_term and not self.by_recall:
            ends = [self.arrived(layer) + index["dropped"].shape[1] for layer in range(self.layers)]
            if (index["evicted"] < self._evicted).any() or (index["evicted"] > ends).any():
                raise ValueError("long-term memory holds other tokens")

    def _split(self, flat: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
        """One part per layer."""
        counts = _int64(counts, 1)
        if counts.shape != (self.layers,) or (counts < 0).any() or counts.sum() != len(flat):
            raise ValueError("an index tensor has another size than its parts")
        return np.split(flat, np.cumsum(counts)[:-1])

    def _take_record(self, record: dict[str, Any], writes: np.ndarray) -> None:
        notes = record["notes"]
        if len(notes) != len(writes) or not all(note is None or isinstance(note, dict) for note in notes):
            raise ValueError("provenance does not fit the writes")
        self.notes += notes
        self.writes.extend(writes.T)
        self.job = record.get("job")
        self.time = str(record.get("time", ""))
        self.pending, self.writes_since_merge = int(record["pending"]), int(record["writes_since_merge"])

    def check(self) -> None:
        """Raise ValueError if short- or long-term memory cannot be what the frames say."""
        self.short()
        for layer in range(self.layers if self.has_long_term else 0):
            end, merged = self.arrived(layer), self._merged[layer]
            if self.by_recall:
                within = not len(merged) or (merged[0] >= 0 and merged[-1] < end - self.pending)
                sound = within and (np.diff(merged) > 0).all() and 0 <= self.pending <= end
                sound = sound and len(merged) == len(self._frequency[layer])
            else:
                sound = len(self._evicted) == self.layers and 0 <= self._evicted[layer] <= end
            if not sound:
                raise ValueError(f"long-term memory of layer {layer} contradicts what arrived in it")

    def short(self) -> np.ndarray:
        """Creation indices in short-term memory, int64 [L, n], ascending.

        Raises:
            ValueError: a token left that was not there.
        """
        if self._short is None:
            self._short = _without(self.short_created, self.base_total, self.created_total, self._dropped.view)
        return self._short

    def arrived(self, layer: int) -> int:
        """How many tokens of a layer ever reached long-term memory, as far as this file goes back."""
        return int(self.long_count[layer]) + self._dropped.view.shape[1] if self.has_long_term else 0

    def alive(self, layer: int) -> np.ndarray:
        """Arrival numbers in long-term memory now, ascending."""
        if not self.has_long_term:
            return np.empty(0, np.int64)
        end = self.arrived(layer)
        if self.by_recall:
            return np.concatenate([self._merged[layer], np.arange(end - self.pending, end)])
        return np.arange(self._evicted[layer], end)

    def created(self, layer: int, arrivals: np.ndarray) -> np.ndarray:
        """Creation indices of arrivals."""
        before = int(self.long_count[layer])
        out = np.empty(len(arrivals), np.int64)
        from_base = arrivals < before
        out[from_base] = self.long_created[layer][arrivals[from_base]]
        out[~from_base] = self._dropped.view[layer][arrivals[~from_base] - before]
        return out

    def long(self, layer: int) -> np.ndarray:
        """Creation indices in long-term memory, in order of arrival."""
        return self.created(layer, self.alive(layer))

    def merged(self, layer: int) -> np.ndarray:
        """Arrival numbers of the merged tokens (rule `recall_frequency`)."""
        return self._merged[layer]

    def frequency(self, layer: int) -> np.ndarray:
        """Recall frequency of the merged tokens, which come first in long-term memory; float32."""
        return self._frequency[layer]

    def write_of(self, created: np.ndarray) -> np.ndarray:
        """Number of the write that made each token; -1 for tokens of unknown origin (such as a checkpoint's)."""
        first, count = self.writes.view
        if not len(first):
            return np.full(len(created), -1)
        number = np.searchsorted(first, created, side="right") - 1
        known = (number >= 0) & (created < first[number] + count[number])
        return np.where(known, number, -1)


def _int64(array: np.ndarray, dimensions: int) -> np.ndarray:
    if array.dtype != np.int64 or array.ndim != dimensions:
        raise ValueError("an index tensor has the wrong type or shape")
    return array


def _without(held: np.ndarray, first: int, end: int, dropped: np.ndarray) -> np.ndarray:
    """Short-term memory after tokens `first` to `end` were added and `dropped` left. [L, n], [L, D] -> [L, n']."""
    made, out = np.arange(first, end), []
    for before, gone in zip(held, dropped, strict=True):
        ever = np.concatenate([before, made])
        place = gone + (len(before) - first)  # where a new token stands
        old = gone < first
        place[old] = np.searchsorted(before, gone[old])
        stays = np.ones(len(ever), bool)
        if len(gone) and (place.max() >= len(ever) or (ever[place] != gone).any()):
            raise ValueError("tokens left short-term memory that were not in it")
        stays[place] = False
        out.append(ever[stays])
        if len(out[-1]) != len(ever) - len(gone):
            raise ValueError("a token left short-term memory twice")
    return np.stack(out)
