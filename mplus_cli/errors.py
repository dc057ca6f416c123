"""Errors a user can act on: a message, a hint (the next command to type), an exit code."""

from __future__ import annotations


class MPlusError(Exception):
    """An expected failure. The command line prints it as one message without a traceback.

    Args:
        message: what is wrong, naming the file, option or value.
        hint: what to do next, preferably a command to type.
        exit_code: status of the process; 1 for failures, 2 for bad input.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(MPlusError):
    """Bad input: an option, a file or a value that cannot be used as given."""

    exit_code = 2


class StateError(MPlusError):
    """A memory state file that is missing, damaged, locked, foreign or made by another model."""

    exit_code = 2


class CheckpointError(MPlusError):
    """A model checkpoint that is missing, incomplete or of an unknown layout."""

    exit_code = 2


class MissingExtraError(MPlusError):
    """An optional package is needed; the hint is the pip line that installs it."""

    exit_code = 2


def is_out_of_memory(exception: BaseException) -> bool:
    """True for Python's, torch's and the CUDA driver's ways of saying it, without importing torch."""
    if isinstance(exception, MemoryError) or type(exception).__name__ == "OutOfMemoryError":
        return True
    text = str(exception)
    return isinstance(exception, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
