"""Asking a run to stop: it finishes its step, saves, and ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether this process was asked to stop: by Ctrl-C or a termination signal, by a file, or by being left alone.

    Signals only set a flag while it is entered, so that no step is torn apart; a second Ctrl-C interrupts at once.

    Args:
        file: asks to stop by being there.
        launcher: process id and host of the command that launched this process; when that is gone, nobody is left to
            ask, and training without end would be the worse guess.
    """

    def __init__(self, file: Path | None = None, launcher: tuple[int, str] | None = None) -> None:
        self.file = file
        self.launcher = launcher[0] if launcher is not None and launcher[1] == socket.gethostname() else None
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        self.asked = self.asked or self._left_alone() or (self.file is not None and self.file.exists())
        return self.asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def _left_alone(self) -> bool:
        return self.launcher is not None and not alive(self.launcher)


def alive(process: int) -> bool:
    """Whether a process of this machine exists and has not ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True  # no such file system here
    return state != "Z"
