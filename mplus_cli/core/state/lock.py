"""One writer per memory state: an advisory lock in a file beside it, which says who holds it.

The kernel drops the lock when its holder ends, however it ends; a lock file that a killed process left is harmless.
Readers need no lock: a state file only grows behind what they see, or is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from datetime import datetime, timezone
from pathlib import Path

from mplus_cli.errors import StateError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


class StateLock:
    """The right to write one state file. Use `acquire`; `release` or the end of the process gives it back."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, state: Path) -> StateLock:
        """Lock a state file (which need not exist yet).

        Raises:
            StateError: another process has it (named in the message), or the lock file cannot be written.
        """
        if fcntl is None:
            raise StateError("Writing a memory state needs a POSIX system.", "On Windows use WSL.")
        path = state.with_name(state.name + ".lock")
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise unwritable(state, error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                current = is_at(path, descriptor)
            except OSError as error:
                holder = _read(descriptor)
                os.close(descriptor)
                raise _refusal(state, error, holder) from error
            if current:
                break
            os.close(descriptor)  # the former holder removed the file between our open and our lock: try again
        lock = cls(path, descriptor)
        lock._sign()
        return lock

    def release(self) -> None:
        """Give the lock back. The lock file goes first, while it is still ours."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            if is_at(self.path, self._descriptor):
                self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def _sign(self) -> None:
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        with contextlib.suppress(OSError):  # only information; a full disk must not keep anybody from the lock itself
            os.ftruncate(self._descriptor, 0)  # type: ignore[arg-type]
            os.pwrite(self._descriptor, holder.encode(), 0)  # type: ignore[arg-type]


def unwritable(path: Path, error: OSError) -> StateError:
    """The message for a state file, or a file beside it, that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StateError(
            f"No room to write {path}: {error.strerror}. What was committed before is intact.",
            f"Free space (df -h {path.parent}) and run the same command again; it continues from the last commit.",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StateError(
            f"{path} cannot be written: {error.strerror}.",
            "Copy the state to a writable place and name that with --state; asking works where it is.",
        )
    if error.errno == errno.ENOENT:
        return StateError(f"There is no directory {path.parent} to write {path.name} in.", f"mkdir -p {path.parent}")
    return StateError(f"{path} cannot be written: {error.strerror or error}. What was committed before is intact.")


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that is at `path` now."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _read(descriptor: int) -> dict:
    with contextlib.suppress(OSError, ValueError):
        holder = json.loads(os.pread(descriptor, 4096, 0))
        if isinstance(holder, dict):
            return holder
    return {}


def _refusal(state: Path, error: OSError, holder: dict) -> StateError:
    if error.errno not in (errno.EAGAIN, errno.EACCES):
        return StateError(f"{state} cannot be locked for writing: {error.strerror}.", "Keep it on a local file system.")
    if holder.get("pid") == os.getpid() and holder.get("host") == socket.gethostname():
        return StateError(
            f"{state} is already open for writing in this process.", "Close the first one before opening it again."
        )
    who = f"process {holder['pid']} on {holder.get('host', 'this machine')}" if "pid" in holder else "another process"
    since = f" since {holder['since']}" if "since" in holder else ""
    return StateError(
        f"{state} is being written by {who}{since}.",
        "Wait until it has finished, or end that process. Asking works meanwhile: it sees the last commit.",
    )
