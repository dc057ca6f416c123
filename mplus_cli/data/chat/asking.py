"""Many questions, each asked again while its answer cannot be used, and set aside in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mplus_cli.console import Progress
from mplus_cli.data.chat.backend import Backend, make_job
from mplus_cli.data.chat.cache import AnswerCache
from mplus_cli.data.chat.requests import Answer, ChatRequest

T = TypeVar("T")


class UnusableAnswerError(ValueError):
    """An answer that cannot be used; the message is the kind of fault, in a few words that can be counted."""


@dataclass(frozen=True)
class Asked(Generic[T]):
    """What became of a question: its value and the answer behind it, or the fault of its last answer.

    After a dry run a question may have no answer at all.
    """

    value: T | None
    answer: Answer | None
    fault: str | None
    attempts: int

    @property
    def unusable(self) -> bool:
        """There is an answer that cannot be used: ask again."""
        return self.answer is not None and self.fault is not None


def ask_all(
    backend: Backend,
    requests: Sequence[ChatRequest],
    parse: Callable[[int, str], T],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Asked[T]]:
    """Ask every request, in rounds: the next attempt is for those whose answer so far cannot be used.

    Every attempt has its place in the cache, so that a rerun walks the same way and asks only what is missing.

    Args:
        parse: given the number of the request and the text of the answer, its value, or raises UnusableAnswerError.
        on_progress: told how many answers are there, of how many wanted in all rounds so far.

    Returns:
        One result per request, in their order.
    """
    results: list[Asked[T] | None] = [None] * len(requests)
    open_requests, total, done = list(range(len(requests))), 0, 0
    for attempt in range(backend.settings.attempts):
        jobs = {index: make_job(backend.settings, requests[index], attempt) for index in open_requests}
        missing = {job.key: job for job in jobs.values() if backend.cache.get(job.key) is None}
        total += len(jobs)
        done += len(jobs) - len(missing)
        on_progress(done, total)
        backend.fetch(list(missing.values()), _shifted(on_progress, done, total))
        done += len(missing)
        for index, job in jobs.items():
            results[index] = _read(backend.cache, job.key, index, parse, attempt + 1)
        open_requests = [index for index in open_requests if _result(results[index]).unusable]
    return [_result(result) for result in results]


def ask_visibly(
    label: str, backend: Backend, requests: Sequence[ChatRequest], parse: Callable[[int, str], T]
) -> list[Asked[T]]:
    """`ask_all` with a line of progress: answers there, rate, time left, money spent."""
    with Progress(label, len(requests), "answers") as progress:

        def show(done: int, total: int) -> None:
            progress.total = max(total, 1)
            cost = backend.budget.cost
            progress.update(done, f"{done:,}/{total:,}" + (f", ${cost:.2f} spent" if cost is not None else ""))

        return ask_all(backend, requests, parse, show)


def _shifted(on_progress: Callable[[int, int], None], done: int, total: int) -> Callable[[int], None]:
    return lambda count: on_progress(done + count, total)


def _read(cache: AnswerCache, key: str, index: int, parse: Callable[[int, str], T], attempts: int) -> Asked[T]:
    answer = cache.get(key)
    if answer is None:
        return Asked(None, None, "no answer", attempts)
    try:
        return Asked(parse(index, usable_text(answer)), answer, None, attempts)
    except UnusableAnswerError as fault:
        return Asked(None, answer, str(fault), attempts)


def usable_text(answer: Answer) -> str:
    """The text of a finished answer.

    Raises:
        UnusableAnswerError: refused, cut short or empty.
    """
    if answer.refusal or answer.finish_reason == "content_filter":
        raise UnusableAnswerError("refused")
    if answer.finish_reason == "length":
        raise UnusableAnswerError("cut short")
    if not answer.content or not answer.content.strip():
        raise UnusableAnswerError("empty")
    return answer.content


def _result(result: Asked[T] | None) -> Asked[T]:
    if result is None:
        raise ValueError("ChatSettings.attempts must be at least 1")
    return result
