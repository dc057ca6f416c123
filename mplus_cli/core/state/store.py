"""A memory state file with what it says: container, log and values together. Numpy only; no models, no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np

from mplus_cli.core.state.file import StateFile
from mplus_cli.core.state.frame import DTYPES, Content, Frame
from mplus_cli.core.state.log import StateLog
from mplus_cli.core.state.values import ValueMap
from mplus_cli.core.state.writer import StateWriter
from mplus_cli.errors import StateError

ROWS = 4096  # rows that are moved at a time
PIECE = 8 << 20  # bytes that verification reads at a time
RELOAD = "Load the memory from the state again, and repeat what was not committed."
_MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError)


class StateStore:
    """One open state.

    Attributes:
        file, log, values: the parts; replaced together when a rewritten file takes the old one's place.
    """

    def __init__(self, file: StateFile) -> None:
        self.file, self.log, self.values = file, *_understand(file)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        base: Content,
        replace: bool = False,
        successor_of: StateWriter | None = None,
    ) -> StateStore:
        """A new file beside `path` that holds its first frame. See `StateWriter.create`."""
        file = StateWriter.create(path, replace, successor_of)
        try:
            file.append(base)
            return cls(file)
        except BaseException:
            file.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], writable: bool = False) -> StateStore:
        """Open as of the last commit. See `StateFile.open` and `StateWriter.open`."""
        file = StateWriter.open(path) if writable else StateFile.open(path)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    @property
    def writer(self) -> StateWriter:
        """The file, where it may be written. Raises StateError otherwise."""
        if not isinstance(self.file, StateWriter):
            raise StateError(f"{self.file.path} was opened for reading only.", "Open it with writable=True.")
        return self.file

    def append(self, content: Content) -> Frame:
        """Commit a frame. See `StateWriter.append`.

        Raises:
            StateError: also where it cannot follow on what is here; nothing is written then.
        """
        try:
            self.log.check_next(content.index)
        except _MALFORMED as error:
            raise StateError(f"This memory does not continue the one in {self.file.path}: {error}.", RELOAD) from error
        frame = self.writer.append(content)
        self.log.apply(frame)
        self.values.extend(frame)
        frame.index.clear()
        return frame

    def succeed(self, successor: StateStore) -> None:
        """Put a rewritten file in this one's place, at the path and here."""
        try:
            successor.writer.publish(self.writer)
        except BaseException:
            successor.file.close()
            raise
        self.file.close()
        self.file, self.log, self.values = successor.file, successor.log, successor.values

    def take(self, layer: int, created: np.ndarray) -> np.ndarray:
        """Bytes of the values of memory tokens, checked. int64 [k] -> uint8 [k, row_bytes]."""
        return self.values.take(self.values.rows(layer, created))

    def keys(self) -> list[np.ndarray]:
        """Retrieval keys of all that long-term memory holds, in order of arrival, checked: per layer [A_l, r].

        Reads only frames that hold some of them. Empty without long-term memory.
        """
        file, log = self.file, self.log
        if not log.has_long_term:
            return []
        dtype, width = DTYPES[log.key_dtype], log.key_size
        arrivals = [log.alive(layer) for layer in range(log.layers)]
        out = [np.empty((len(wanted), width), dtype) for wanted in arrivals]
        later = [wanted - count for wanted, count in zip(arrivals, log.long_count, strict=True)]  # 0 is in a commit
        with_keys = [(frame, frame.keys.shape[1]) for frame in file.frames[1:] if frame.keys is not None]
        frames, counts = [frame for frame, _ in with_keys], [count for _, count in with_keys]
        starts = np.cumsum([0, *counts])
        cuts = np.stack([np.searchsorted(wanted, starts) for wanted in later], axis=1)  # [frame, layer]
        if cuts[0].any():
            held = np.frombuffer(file.read_keys(file.frames[0]), dtype).reshape(-1, width)
            for layer, before in enumerate(np.split(held, np.cumsum(log.long_count)[:-1])):
                out[layer][: cuts[0, layer]] = before[arrivals[layer][: cuts[0, layer]]]
        for number, (frame, count) in enumerate(zip(frames, counts, strict=True)):
            low, high = cuts[number].tolist(), cuts[number + 1].tolist()
            if low == high:
                continue
            block = np.frombuffer(file.read_keys(frame), dtype).reshape(log.layers, count, width)
            for layer, (first, last) in enumerate(zip(low, high, strict=True)):
                part = slice(None) if last - first == count else later[layer][first:last] - starts[number]
                out[layer][first:last] = block[layer, part]
        return out

    def digest(self) -> str:
        """sha256 over the memory's content and order, whatever the file's layout. Reads everything."""
        log, keys = self.log, self.keys()
        out = hashlib.sha256(f"{log.layers} {log.width} {log.dtype} {log.created_total}".encode())
        for layer, short in enumerate(log.short()):
            for created in (short, log.long(layer)):
                out.update(created.tobytes())
                for start in range(0, len(created), ROWS):
                    out.update(self.take(layer, created[start : start + ROWS]).data)
            if keys:
                out.update(keys[layer].tobytes() + log.frequency(layer).tobytes())
        return out.hexdigest()

    def verify(self, progress: Callable[[int, int], None] | None = None) -> dict[str, int]:
        """Check every checksum, those of values that memory no longer holds included; counts of what was checked."""
        self.file.check()
        frames = self.file.frames
        total = sum(frame.values.size for frame in frames if frame.values is not None)
        for done in self.values.check(PIECE):
            if progress is not None:
                progress(done, total)
        keys = sum(frame.keys.size // frame.keys.row_bytes for frame in frames if frame.keys is not None)
        return {"frames": len(frames), "values": self.values.total, "keys": keys, "bytes": self.file.length}

    def close(self) -> None:
        self.file.close()


def _understand(file: StateFile) -> tuple[StateLog, ValueMap]:
    try:
        log = StateLog.replay(file.frames)
        values = ValueMap(file, log)
    except _MALFORMED as error:
        raise file.contradiction(str(error)) from error
    for frame in file.frames:
        frame.index.clear()  # all of it is in the log and the map now
    return log, values
