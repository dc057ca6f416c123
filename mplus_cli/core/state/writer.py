"""Making and extending memory state files: the only code that writes them. Format and guarantees: see `file`."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from mplus_cli.core.state.file import StateFile, unopenable
from mplus_cli.core.state.frame import Content, Frame, write_frame
from mplus_cli.core.state.lock import StateLock, is_at, unwritable
from mplus_cli.core.state.superblock import SLOT_SIZE, Slot
from mplus_cli.errors import StateError


class StateWriter(StateFile):
    """A memory state file that this process, and no other, may extend."""

    writable = True

    def __init__(self, path: Path, descriptor: int, lock: StateLock, published: bool, borrowed: bool = False) -> None:
        super().__init__(path, descriptor)
        self._lock, self._published = lock, published
        self._borrowed = borrowed  # the lock is another writer's to release
        self._uncertain = False

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], replace: bool = False, successor_of: StateWriter | None = None
    ) -> StateWriter:
        """Begin a new file beside `path`; nothing is at `path` before `publish`.

        Args:
            replace: whether a file that is already there may be replaced (then, and not before).
            successor_of: the open file whose place it will take; that one keeps the lock until `publish`.

        Raises:
            StateError: there is a file, another process writes it, or nothing can be written here.
        """
        target = Path(os.path.realpath(path))
        lock = StateLock.acquire(target) if successor_of is None else successor_of._lock
        try:
            if target.exists() and not replace:
                raise StateError(f"{target} exists already.", "Continue it without --fresh, or replace it: --fresh.")
            try:
                descriptor = os.open(_beside(target), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise unwritable(target, error) from error
            with contextlib.suppress(OSError):  # keep a private file private
                os.fchmod(descriptor, os.stat(target).st_mode & 0o777)
        except BaseException:
            if successor_of is None:
                lock.release()
            raise
        return cls(target, descriptor, lock, published=False, borrowed=successor_of is not None)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> StateWriter:
        """Open a file to extend it, and lock it.

        Raises:
            StateError: as for reading; or another process writes it, or it cannot be written.
        """
        target = Path(os.path.realpath(path))
        if not target.is_file():
            StateFile.open(target).close()  # raises, naming the reason
        lock = StateLock.acquire(target)
        descriptor = -1
        try:
            try:
                descriptor = os.open(target, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise unopenable(target, error) from error
            except OSError as error:
                raise unwritable(target, error) from error
            file = cls(target, descriptor, lock, published=True)
            file._load()
            if file.torn:
                file._write_slots(file.tip)
            with contextlib.suppress(OSError):
                os.unlink(_beside(target))  # what a killed process was still making
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            lock.release()
            raise
        return file

    @property
    def published(self) -> bool:
        return self._published

    def append(self, content: Content) -> Frame:
        """Add a frame and commit it: atomic, and durable on return.

        Raises:
            StateError: the disk is full or not writable, or the file was replaced; what was committed stays as it is.
        """
        self._check_writable()
        try:
            if os.fstat(self._descriptor).st_size > self.length:
                os.ftruncate(self._descriptor, self.length)
            frame = write_frame(self._write, self.length, self.tip.sequence + 1, content)
            _sync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.length)
            raise unwritable(self.path, error) from error
        self._uncertain = True  # until the slot is on disk nobody can tell whether this commit counts
        self._write_slots(self._tip_after(frame))
        self._uncertain = False
        self._add(frame)
        return frame

    def publish(self, predecessor: StateWriter | None = None) -> None:
        """Put a new file at its path, replacing what is there. Atomic, and durable on return.

        Args:
            predecessor: as given to `create`; its lock passes to this file.
        """
        if self._published:
            return
        try:
            os.replace(_beside(self.path), self.path)
            self._published = True
            if predecessor is not None:
                self._borrowed, predecessor._borrowed = False, True
            _sync_directory(self.path.parent)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Close and give the lock back; a new file that was never published is removed."""
        if self._descriptor < 0:
            return
        if not self._published:
            with contextlib.suppress(OSError):
                os.unlink(_beside(self.path))
        super().close()
        if not self._borrowed:
            self._lock.release()

    def _write(self, at: int, data: Any) -> None:
        view = memoryview(data)
        while len(view):
            done = os.pwrite(self._descriptor, view, at)
            view, at = view[done:], at + done

    def _write_slots(self, tip: Slot) -> None:
        try:
            for number in (0, 1) if tip.sequence == 1 else (tip.sequence % 2,):
                self._write(number * SLOT_SIZE, tip.pack())
            _sync(self._descriptor)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _check_writable(self) -> None:
        if self._descriptor < 0:
            raise StateError(f"{self.path} was closed.", "Open it again.")
        if self._uncertain:
            text = f"An earlier commit to {self.path} failed half way."
            raise StateError(text, "Open it again: it holds that commit, or the one before.")
        if self._published and not is_at(self.path, self._descriptor):
            text = f"{self.path} was removed or replaced while it was being written."
            raise StateError(text, "Open it again and repeat what was not committed.")


def _beside(path: Path) -> Path:
    """Where a new version is made; the lock keeps others away from it."""
    return path.with_name(path.name + ".new")


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":  # there fsync only reaches the drive's cache
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
