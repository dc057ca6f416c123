"""Answers request by request, several at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence

from mplus_cli.data.chat.backend import ChatSettings, Job
from mplus_cli.data.chat.cache import AnswerCache
from mplus_cli.data.chat.cost import Budget, CostLimitError
from mplus_cli.data.chat.requests import Answer
from mplus_cli.data.chat.transport import RejectedRequestError, Transport


class LiveBackend:
    """Asks a server with a limit on the requests under way; each answer is in the cache before the next is asked."""

    def __init__(self, settings: ChatSettings, cache: AnswerCache, budget: Budget) -> None:
        self.settings, self.cache, self.budget = settings, cache, budget
        self.retried = 0

    def fetch(self, jobs: Sequence[Job], on_done: Callable[[int], None]) -> None:
        """See `Backend.fetch`. Ctrl-C ends it at once; what was answered stays."""
        if jobs:
            asyncio.run(self._fetch(jobs, on_done))

    async def _fetch(self, jobs: Sequence[Job], on_done: Callable[[int], None]) -> None:
        async with Transport(self.settings) as transport:
            run = _Run(transport, self.cache, self.budget, iter(jobs), on_done)
            workers = [asyncio.create_task(run.work()) for _ in range(min(self.settings.concurrency, len(jobs)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                self.retried += transport.retried
        if run.stopped is not None:
            raise run.stopped


class _Run:
    """What the workers of one fetch share."""

    def __init__(
        self,
        transport: Transport,
        cache: AnswerCache,
        budget: Budget,
        jobs: Iterator[Job],
        on_done: Callable[[int], None],
    ) -> None:
        self.transport, self.cache, self.budget, self.jobs, self.on_done = transport, cache, budget, jobs, on_done
        self.stopped: CostLimitError | None = None
        self.done = self.under_way = 0
        self.settled = asyncio.Condition()

    async def work(self) -> None:
        for job in self.jobs:
            reserved = await self._reserve(job)
            if reserved is None:
                return
            self.under_way += 1
            answer = None
            try:
                answer = await self._ask(job)
                self.cache.put(job.key, self.transport.settings.server, job.body, answer)
            finally:
                self.under_way -= 1
                used = (answer.input_tokens, answer.output_tokens, 1) if answer else ()
                self.budget.settle(reserved, *used)
                async with self.settled:
                    self.settled.notify_all()
            self.done += 1
            self.on_done(self.done)

    async def _reserve(self, job: Job) -> float | None:
        """Money for a request. Those under way mostly cost less than was reserved: wait for them before giving up."""
        while self.stopped is None:
            try:
                return self.budget.reserve(job.input_tokens, job.max_output_tokens)
            except CostLimitError as limit:
                if not self.under_way:
                    self.stopped = limit
                    break
                async with self.settled:
                    await self.settled.wait()
        return None

    async def _ask(self, job: Job) -> Answer:
        async def send() -> Answer:
            raw = await self.transport.client.chat.completions.with_raw_response.create(**job.body)
            return read_completion(raw.text)

        try:
            return await self.transport.call(send)
        except RejectedRequestError as refused:
            return rejected(str(refused), job)


def read_completion(text: str) -> Answer:
    """The answer in the body of a response.

    Raises:
        ValueError: the body is no chat completion.
    """
    try:
        return Answer.from_completion(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"the answer is not JSON: {text[:200]!r}") from error


def rejected(words: str, job: Job) -> Answer:
    """What the cache keeps of a request that the server will not answer."""
    return Answer(None, words, "content_filter", job.body["model"], 0, 0)
