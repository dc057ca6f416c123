"""The values of memory tokens where they lie in a state file: mapped, gathered on demand, every row checked on use."""

from __future__ import annotations

import mmap
import resource
from collections.abc import Iterator
from zlib import crc32

import numpy as np

from mplus_cli.core.state.file import StateFile
from mplus_cli.core.state.frame import DTYPES, Frame
from mplus_cli.core.state.log import Growing, StateLog

# Pages around a touched one get mapped too, up to megabytes where the kernel caches in large pieces. So rows are
# gathered a few at a time, and the mapping lets go of its pages (not the kernel's cache) after each group.
GROUP = 64


class ValueMap:
    """Random access to the values of one state file.

    Keeps working after the file was closed, extended or replaced at its path: it has its own hold on what it maps.

    Rows are numbered through the file: the first frame's, then each commit's, layer by layer within a commit.

    Attributes:
        row_bytes: bytes of one value.
    """

    def __init__(self, file: StateFile, log: StateLog) -> None:
        self._file, self._log = file, log
        self.row_bytes = log.width * np.dtype(DTYPES[log.dtype]).itemsize
        self._base: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._crcs, self._checked = Growing(np.uint32), Growing(bool)
        # One entry per frame that has values: its first creation index, tokens per layer, first row, file offset.
        self._first, self._count = Growing(np.int64), Growing(np.int64)
        self._row, self._at = Growing(np.int64), Growing(np.int64)
        self._add(file.frames)
        self._map()

    def extend(self, frame: Frame) -> None:
        """Take in a frame that was just committed."""
        self._add([frame])
        self._map()

    def rows(self, layer: int, created: np.ndarray) -> np.ndarray:
        """Row numbers of memory tokens of one layer. int64 [k] -> int64 [k]. Raises StateError for one never stored."""
        entry = np.searchsorted(self._first.view, created, side="right") - 1
        out = self._row.view[entry] + layer * self._count.view[entry] + created - self._first.view[entry]
        from_base = created < self._log.base_total
        if from_base.any():
            known, rows = self._base_rows(layer)
            place = np.searchsorted(known, created[from_base]).clip(max=len(known) - 1)
            if not len(known) or (known[place] != created[from_base]).any():
                raise self._file.contradiction(f"layer {layer} has a memory token without a value")
            out[from_base] = rows[place]
        return out

    def _base_rows(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Creation indices of a layer's tokens in the first frame, ascending, and their rows."""
        if layer not in self._base:
            log, fill = self._log, self._log.short_created.shape[1]
            created = np.concatenate([log.short_created[layer], log.long_created[layer]])
            rows = np.arange(len(created)) + layer * fill
            rows[fill:] += (log.layers - 1 - layer) * fill + int(log.long_count[:layer].sum())
            order = np.argsort(created, kind="stable")
            self._base[layer] = created[order], rows[order]
            if (np.diff(created[order]) == 0).any():
                raise self._file.contradiction(f"two memory tokens of layer {layer} have one creation index")
        return self._base[layer]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The bytes of rows, uint8 [k, row_bytes], checked.

        Raises:
            StateError: a row differs from its checksum (named), or the file was truncated.
        """
        if self._mapping.size() < len(self._mapping):
            raise self._file.truncated("it was cut while it was open")
        entry = np.searchsorted(self._row.view, rows, side="right") - 1
        offsets = self._at.view[entry] + (rows - self._row.view[entry]) * self.row_bytes
        out = self._gather(offsets)
        unchecked = np.flatnonzero(~self._checked.view[rows])
        for i in unchecked:
            if crc32(out[i].data) != self._crcs.view[rows[i]]:
                raise self._file.damaged(self._name(int(rows[i])))
        self._checked.view[rows[unchecked]] = True
        return out

    @property
    def total(self) -> int:
        """Rows in the file, those that memory no longer holds included."""
        return len(self._crcs.view)

    def check(self, piece: int) -> Iterator[int]:
        """Read all rows in the order of the file, about `piece` bytes at a time, and check them; yields bytes done."""
        step, done = max(piece // self.row_bytes, 1), 0
        ends = np.append(self._row.view[1:], self.total)
        for at, first, end in zip(self._at.view.tolist(), self._row.view.tolist(), ends.tolist(), strict=True):
            for start in range(first, end, step):
                count = min(step, end - start)
                data = memoryview(self._file.read(at + (start - first) * self.row_bytes, count * self.row_bytes))
                for i in range(count):
                    if crc32(data[i * self.row_bytes : (i + 1) * self.row_bytes]) != self._crcs.view[start + i]:
                        raise self._file.damaged(self._name(start + i))
                done += len(data)
                yield done

    def _gather(self, offsets: np.ndarray) -> np.ndarray:
        out = np.empty((len(offsets), self.row_bytes), np.uint8)
        faults, from_disk = _major_faults(), False
        for start in range(0, len(offsets), GROUP):
            out[start : start + GROUP] = self._window[offsets[start : start + GROUP]]
            if not from_disk and _major_faults() > faults:
                # Not in the kernel's cache: ask for all the others at once instead of waiting for each in turn.
                from_disk = True
                for offset in offsets[start + GROUP :].tolist():
                    ahead = offset % mmap.PAGESIZE
                    self._mapping.madvise(mmap.MADV_WILLNEED, offset - ahead, self.row_bytes + ahead)
            self._mapping.madvise(mmap.MADV_DONTNEED)
        return out

    def _add(self, frames: list[Frame]) -> None:
        entries, crcs, rows = [], [np.empty(0, np.uint32)], self.total
        for frame in frames:
            if frame.values is None:
                continue
            is_base = frame.kind == "base"
            first = np.iinfo(np.int64).min if is_base else int(frame.index["writes"][0, 0])
            entries.append((first, 0 if is_base else frame.values.shape[1], rows, frame.values_at))
            crcs.append(frame.index["value_crc32"].reshape(-1))
            rows += crcs[-1].size
        columns = np.array(entries, np.int64).reshape(-1, 4).T
        for column, new in zip((self._first, self._count, self._row, self._at), columns, strict=True):
            column.extend(new)
        self._crcs.extend(np.concatenate(crcs))
        self._checked.extend(np.zeros(rows - len(self._checked.view), bool))

    def _map(self) -> None:
        self._mapping = self._file.map()
        self._mapping.madvise(mmap.MADV_RANDOM)  # rows are scattered: reading ahead would only fill memory
        flat = np.frombuffer(self._mapping, np.uint8)
        size = max(len(flat) - self.row_bytes + 1, 0)
        self._window = np.lib.stride_tricks.as_strided(flat, (size, self.row_bytes), (1, 1), writeable=False)

    def _name(self, row: int) -> str:
        """Which memory token a row is, for messages."""
        entry = int(np.searchsorted(self._row.view, row, side="right")) - 1
        within, log = row - int(self._row.view[entry]), self._log
        if entry:
            layer, number = divmod(within, int(self._count.view[entry]))
            return f"the value of memory token {int(self._first.view[entry]) + number} in layer {layer}"
        fill = log.short_created.shape[1]
        if within < log.short_created.size:
            layer, number = divmod(within, fill)
            return f"the value of memory token {log.short_created[layer, number]} in layer {layer} (first frame)"
        layer = int(np.searchsorted(np.cumsum(log.long_count), within - log.short_created.size, side="right"))
        return f"the value of a long-term memory token in layer {layer} (first frame)"


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
