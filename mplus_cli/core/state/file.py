"""The container of a memory state: a log of frames behind two superblock slots. Knows nothing of models or memory.

    offset 0      slot 0, 4096 bytes     two copies of "where the last commit ends", written in turns
    offset 4096   slot 1, 4096 bytes
    offset 8192   frame 1 (the state it began with), frame 2 (commit 1), frame 3 (commit 2), ...

A slot, little-endian: magic `\\x89MPLUS\\r\\n`, uint32 format version (2 where values are codes, else 1), uint32 slot
size (4096), uint64 sequence number of the last committed frame, uint64 committed length of the file, uint32 CRC-32
chained over the headers (their first 60 bytes) of all committed frames, zeros, and in its last four bytes the CRC-32 of
everything before them. Both slots hold sequence number 1 in a new file; afterwards frame n is committed by slot n % 2.

A commit appends a frame, syncs it, and only then overwrites the older slot, so at any moment a killed process or a
power failure leaves the state as of one commit or the next. Bytes behind the committed length are what a killed
writer left; readers ignore them and the next writer cuts them off. A slot in which the bytes of its last two contents
are mixed was being written when the power failed; the frame that it commits was on disk by then, and counts. Any
other flaw of a slot is damage, and damage is refused, never rolled back.

This module opens and reads; `writer` makes and extends.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from zlib import crc32

from mplus_cli.core.state.frame import CODES, Frame, FrameError, read_frame
from mplus_cli.core.state.superblock import (
    CODED_FORMAT,
    FIRST_FRAME,
    FORMAT_VERSION,
    LATEST_FORMAT,
    MAGIC,
    SLOT_SIZE,
    Slot,
    claimed_version,
    describe,
    is_torn,
    parse_slot,
)
from mplus_cli.errors import StateError

RESTORE = "Restore the file from a copy, or make the memory again: mplus inject SOURCE --fresh --state {path}"


class StateFile:
    """A memory state file as of its last commit, open for reading.

    Attributes:
        path: where it is.
        frames: all committed frames, in order; at least one.
        tip: sequence number of the last one, committed length in bytes, CRC chain over their headers.
        torn: whether the last commit was caught half way by a power failure, and completed from its frame.
    """

    writable = False

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.frames: list[Frame] = []
        self.tip = Slot(0, FIRST_FRAME, 0)
        self.torn = False
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StateFile:
        """Open a file, checking everything but keys and values. Needs no lock.

        Raises:
            StateError: missing, foreign, of a later format, truncated or damaged.
        """
        target = Path(os.path.realpath(path))
        try:
            descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unopenable(target, error) from error
        file = cls(target, descriptor)
        try:
            file._load()
        except BaseException:
            file.close()
            raise
        return file

    @property
    def length(self) -> int:
        """Committed length in bytes."""
        return self.tip.length

    @property
    def published(self) -> bool:
        """Whether the file is at its path (a new one is written beside it first)."""
        return True

    def close(self) -> None:
        """Close. What `map` returned stays usable."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, at: int, size: int) -> bytes:
        """Exactly `size` bytes at a file offset."""
        parts = []
        while size > 0:
            try:
                part = os.pread(self._descriptor, size, at)
            except OSError as error:
                raise StateError(f"{self.path} cannot be read: {error.strerror}.", "Check the disk.") from error
            if not part:
                raise self.truncated("it was cut while it was open")
            parts.append(part)
            at, size = at + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_keys(self, frame: Frame) -> bytes:
        """The bytes of a frame's `keys`, checked."""
        if frame.keys is None:
            return b""
        data = self.read(frame.keys_at, frame.keys.size)
        if crc32(data) != frame.keys_crc:
            raise self.damaged(f"the keys of {frame.name}")
        return data

    def map(self) -> mmap.mmap:
        """The committed part of the file, mapped read-only. It outlives this object and the file's replacement."""
        return mmap.mmap(self._descriptor, self.length, prot=mmap.PROT_READ)

    def check(self) -> None:
        """Read slots, headers, indices and keys again and check them all. Raises StateError."""
        again = StateFile(self.path, self._descriptor)
        again._load()
        for frame in again.frames:
            again.read_keys(frame)

    # -- opening -------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        slots = self._read_slots()
        parsed = [parse_slot(data) for data in slots]
        valid = [slot for slot in parsed if slot is not None]
        version = max((slot.version for slot in valid), default=claimed_version(slots))
        if version > LATEST_FORMAT:
            raise StateError(
                f"{self.path} has state format {version}; this program knows formats up to {LATEST_FORMAT}.",
                "Update it: pip install --upgrade mplus",
            )
        if not valid:
            raise self._foreign(slots)
        newest = max(valid, key=lambda slot: slot.sequence)
        size = os.fstat(self._descriptor).st_size
        if size < newest.length:
            raise self.truncated(f"{size} bytes of {newest.length} that were committed are there")
        before = self.tip
        while self.length < newest.length:
            before = self.tip
            self._add(self._read_next(newest.length))
        if not self.frames or self.tip != newest:
            raise self.damaged("the chain of frame headers")
        if len(valid) < 2:
            self._complete_torn_slot(slots, parsed.index(None), before if before.sequence else newest, size)

    def _read_slots(self) -> list[bytes]:
        """Both slots; again after a moment if one looks bad, because a writer may be in the middle of it."""
        slots: list[bytes] = []
        for attempt in range(4):
            time.sleep(0.005 * attempt)
            try:
                slots = [os.pread(self._descriptor, SLOT_SIZE, number * SLOT_SIZE) for number in (0, 1)]
            except OSError as error:
                raise unopenable(self.path, error) from error
            if all(parse_slot(slot) for slot in slots) or not any(slot.startswith(MAGIC) for slot in slots):
                break
        return slots

    def _complete_torn_slot(self, slots: list[bytes], number: int, old: Slot, size: int) -> None:
        """Finish a commit whose slot a power failure caught half written; refuse any other bad slot."""
        damaged = self.damaged(f"superblock slot {number}")
        try:
            self._add(self._read_next(size))
        except StateError:
            raise damaged from None
        if self.tip.sequence % 2 != number or not is_torn(slots[number], old, self.tip):
            raise damaged
        self.torn = True

    def _read_next(self, limit: int) -> Frame:
        try:
            return read_frame(self.read, self.length, limit, self.tip.sequence + 1)
        except FrameError as error:
            name = f"commit {self.tip.sequence}" if self.tip.sequence else "the first frame"
            raise self.damaged(f"the {error} of {name}") from error

    def _add(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.tip = self._tip_after(frame)

    def _tip_after(self, frame: Frame) -> Slot:
        # Without its last four bytes: over data and its own CRC-32 together every CRC-32 is the same.
        values = (self.frames or [frame])[0].values
        version = CODED_FORMAT if values is not None and values.dtype in CODES else FORMAT_VERSION
        return Slot(frame.sequence, frame.end, crc32(frame.header[:-4], self.tip.chain), version)

    # -- refusing ------------------------------------------------------------------------------------------------------

    def damaged(self, region: str) -> StateError:
        """The refusal of a file in which `region` is not what was written."""
        text = f"{self.path} is damaged: {region} differs from its checksum."
        return StateError(text, RESTORE.format(path=self.path))

    def contradiction(self, what: str) -> StateError:
        """The refusal of a file whose checksums hold and whose content cannot be."""
        return StateError(f"{self.path} contradicts itself: {what}.", RESTORE.format(path=self.path))

    def truncated(self, how: str) -> StateError:
        """The refusal of a file that is shorter than it was."""
        return StateError(f"{self.path} is truncated: {how}.", RESTORE.format(path=self.path))

    def _foreign(self, slots: list[bytes]) -> StateError:
        if any(slot.startswith(MAGIC) for slot in slots):
            if len(slots[1]) < SLOT_SIZE:
                return self.truncated("not even its first bytes are whole")
            return self.damaged("each superblock slot")
        text = f"{self.path} is not a memory state: {describe(slots[0])}."
        return StateError(text, "Name a file that mplus inject made.")


def unopenable(path: Path, error: OSError) -> StateError:
    """The message for a state file that cannot be opened for reading."""
    if isinstance(error, FileNotFoundError):
        return StateError(f"There is no memory state {path}.", f"Make it: mplus inject SOURCE --state {path}")
    if isinstance(error, IsADirectoryError):
        return StateError(f"{path} is a directory, not a memory state.", "Name the file itself.")
    return StateError(f"{path} cannot be opened: {error.strerror}.", f"Check it: ls -l {path}")
