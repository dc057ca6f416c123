"""Making the next thing in a thread while the present one is being used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Results of calling `make` again and again, in order, one call ahead of what was asked for.

    Calls never overlap. An error of `make` is raised by the `next` that would have returned its result.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mplus-data")
        self._coming: Future[T] | None = None

    def next(self) -> T:
        if self._coming is None:
            self._coming = self._thread.submit(self._make)
        made = self._coming.result()  # an interrupt while waiting loses nothing: the result stays where it is
        self._coming = self._thread.submit(self._make)
        return made

    def drop(self) -> None:
        """Throw away what is made ahead; returns when `make` is not running."""
        if self._coming is not None:
            self._coming.exception()
            self._coming = None
