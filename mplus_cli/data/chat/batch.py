"""Answers through the Batch API: half the price, within a day, and a process that may end in between.

What is submitted is on disk before it is submitted: `batches/TAG.jsonl`, the requests, and `batches/TAG.json`, the id
of the batch. A process that was killed finds them, or finds the batch on the server by its tag: nothing is paid twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from mplus_cli.data.chat.backend import ChatSettings, Job
from mplus_cli.data.chat.cache import AnswerCache
from mplus_cli.data.chat.cost import Budget
from mplus_cli.data.chat.live import rejected
from mplus_cli.data.chat.requests import Answer
from mplus_cli.data.chat.transport import Transport
from mplus_cli.errors import MPlusError, UsageError

ENDPOINT: Final = "/v1/chat/completions"
MOST_REQUESTS = 50_000
MOST_BYTES = 190_000_000  # the server takes 200 MB
_ENDED = {"completed", "failed", "expired", "cancelled"}
_TAG = "mplus_requests"


@dataclass
class _Batch:
    """A batch on its way: its tag (hash of its keys), its id once it has one, its jobs by key."""

    tag: str
    id: str | None
    jobs: dict[str, Job]
    reserved: list[float] = field(default_factory=list)


class BatchBackend:
    """Asks a server by uploading files of requests. Interrupted, it finds its batches again."""

    def __init__(self, settings: ChatSettings, cache: AnswerCache, budget: Budget) -> None:
        self.settings, self.cache, self.budget = settings, cache, budget
        self.retried = 0
        server = hashlib.sha256(settings.server.encode()).hexdigest()[:12]
        self.folder = cache.folder / "batches" / server

    def fetch(self, jobs: Sequence[Job], on_done: Callable[[int], None]) -> None:
        """See `Backend.fetch`."""
        if jobs:
            asyncio.run(self._fetch({job.key: job for job in jobs}, on_done))

    async def _fetch(self, wanted: dict[str, Job], on_done: Callable[[int], None]) -> None:
        async with Transport(self.settings) as transport:
            try:
                for _ in range(self.settings.retries + 1):
                    batches = [batch for batch in self._recorded() if batch.jobs.keys() & wanted.keys()]
                    under_way = {key for batch in batches for key in batch.jobs}
                    batches += self._prepare([job for key, job in wanted.items() if key not in under_way])
                    for batch in batches:
                        await self._submit(transport, batch)
                    await self._wait(transport, batches, len(wanted), on_done)
                    wanted = {key: job for key, job in wanted.items() if self.cache.get(key) is None}
                    if not wanted:
                        return
            finally:
                self.retried += transport.retried
        raise MPlusError(
            f"{self.settings.server} left {len(wanted):,} requests unanswered in {self.settings.retries + 1} batches",
            hint="all answers so far are kept; the same command asks for the rest",
        )

    def _prepare(self, jobs: list[Job]) -> list[_Batch]:
        """Cut the jobs into batches the server takes, and write them down. Over the cost limit nothing is sent."""
        batches = []
        for part in _parts(jobs):
            tag = hashlib.sha256("\n".join(job.key for job in part).encode()).hexdigest()[:32]
            batches.append(_Batch(tag, None, {job.key: job for job in part}))
        for batch in batches:
            for job in batch.jobs.values():
                batch.reserved.append(self.budget.reserve(job.input_tokens, job.max_output_tokens))
        for batch in batches:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = self._requests_file(batch.tag).with_suffix(".part")
            beside.write_text("".join(_line(job) for job in batch.jobs.values()), encoding="utf-8")
            beside.replace(self._requests_file(batch.tag))
        return batches

    async def _submit(self, transport: Transport, batch: _Batch) -> None:
        """Make sure that the batch is on the server, once."""
        if batch.id is not None:
            return
        record = self._record_file(batch.tag)
        if record.exists():  # a process died between asking for the batch and hearing its id
            batch.id = await self._find(transport, batch.tag)
        else:
            self.cache.write_json(record, {"id": None})
        if batch.id is None:
            requests = self._requests_file(batch.tag)
            upload = await transport.call(lambda: transport.client.files.create(file=requests, purpose="batch"))
            created = await transport.call(
                lambda: transport.client.batches.create(
                    input_file_id=upload.id,
                    endpoint=ENDPOINT,
                    completion_window="24h",
                    metadata={_TAG: batch.tag},
                )
            )
            batch.id = created.id
        self.cache.write_json(record, {"id": batch.id})

    async def _find(self, transport: Transport, tag: str) -> str | None:
        """The id of the batch with this tag among the last hundred of the account."""
        listed = await transport.call(lambda: _page(transport))
        matching = (batch for batch in listed if (batch.metadata or {}).get(_TAG) == tag)
        return next((batch.id for batch in matching if batch.status not in ("failed", "cancelled")), None)

    async def _wait(
        self, transport: Transport, batches: list[_Batch], total: int, on_done: Callable[[int], None]
    ) -> None:
        counts = dict.fromkeys((batch.tag for batch in batches), 0)
        open_batches = list(batches)
        while open_batches:
            for batch in list(open_batches):
                state = await transport.call(partial(transport.client.batches.retrieve, batch.id or ""))
                if state.request_counts is not None:
                    counts[batch.tag] = state.request_counts.completed
                on_done(min(total, sum(counts.values())))
                if state.status in _ENDED:
                    await self._collect(transport, batch, state)
                    open_batches.remove(batch)
            if open_batches:
                await asyncio.sleep(self.settings.batch_poll)

    async def _collect(self, transport: Transport, batch: _Batch, state: Any) -> None:
        """Move the answers of an ended batch into the cache and forget the batch."""
        for file_id in filter(None, (state.output_file_id, state.error_file_id)):
            content = await transport.call(partial(transport.client.files.content, file_id))
            for key, answer in _answers(content.text, batch.jobs):
                if self.cache.get(key) is None:
                    self.cache.put(key, self.settings.server, batch.jobs[key].body, answer)
                    self.budget.settle(0.0, answer.input_tokens, answer.output_tokens, 1)
        for reserved in batch.reserved:
            self.budget.settle(reserved)
        self._record_file(batch.tag).unlink(missing_ok=True)
        self._requests_file(batch.tag).unlink(missing_ok=True)
        if state.status == "failed":
            errors = [error.message for error in (state.errors.data if state.errors else None) or []]
            words = transport.redact("; ".join(filter(None, errors[:3])) or "no reason given")
            raise UsageError(f"{self.settings.server} refuses the batch: {words}")

    def _recorded(self) -> list[_Batch]:
        """Batches that an earlier process wrote down, whether or not they reached the server."""
        batches = []
        for path in sorted(self.folder.glob("*.jsonl")) if self.folder.is_dir() else []:
            lines = (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line)
            jobs = {line["custom_id"]: Job(line["custom_id"], line["body"], 0, 0) for line in lines}
            record = self._record_file(path.stem)
            batch_id = json.loads(record.read_bytes())["id"] if record.exists() else None
            batches.append(_Batch(path.stem, batch_id, jobs))
        return batches

    def _requests_file(self, tag: str) -> Path:
        return self.folder / f"{tag}.jsonl"

    def _record_file(self, tag: str) -> Path:
        return self.folder / f"{tag}.json"


async def _page(transport: Transport) -> list[Any]:
    return list((await transport.client.batches.list(limit=100)).data)


def _line(job: Job) -> str:
    record = {"custom_id": job.key, "method": "POST", "url": ENDPOINT, "body": job.body}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _parts(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Runs of jobs within the limits of one file."""
    part: list[Job] = []
    size = 0
    for job in jobs:
        length = len(_line(job).encode())
        if part and (len(part) == MOST_REQUESTS or size + length > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(job)
        size += length
    if part:
        yield part


def _answers(text: str, jobs: dict[str, Job]) -> Iterator[tuple[str, Answer]]:
    """Answers in an output or error file. What cannot be read or failed on the server is left out: asked again."""
    for line in text.split("\n"):
        try:
            record = json.loads(line)
            key, response = record["custom_id"], record.get("response") or {}
            if key not in jobs:
                continue
            if response.get("status_code") == 200:
                yield key, Answer.from_completion(response["body"])
            elif response.get("status_code") == 400:
                yield key, rejected(str(response["body"]["error"]["message"])[:300], jobs[key])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
