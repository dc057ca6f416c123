"""Asking every question that is not answered yet, one batch of items after another, and keeping each answer at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mplus_cli.errors import MPlusError, is_out_of_memory
from mplus_cli.evaluation import predictions
from mplus_cli.evaluation.items import Answer, Item
from mplus_cli.evaluation.preparing import Job, begin, prepare
from mplus_cli.evaluation.request import Plan, Request
from mplus_cli.evaluation.task import Tell
from mplus_cli.inference.models import LoadedModel, load_model
from mplus_cli.machine import PeakMemory

SMALL_MODEL, SMALL_BATCH = 100_000_000, 16  # parameters, items
# Samples done, of how many, what is running. A measurement that takes long says itself how far it is: then what is done
# is no whole number, and the words say all.
Show = Callable[[float, int, str], None]


@dataclass(frozen=True)
class Share:
    """This process among those that share the samples out; each takes every `count`-th item."""

    rank: int = 0
    count: int = 1

    @property
    def file(self) -> str:
        return predictions.NAME if self.count == 1 else f"predictions.{self.rank}.jsonl"


def evaluate(
    request: Request,
    plan: Plan,
    show: Show,
    command: Sequence[str] = (),
    share: Share | None = None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Answer every sample of the plan that has no answer yet.

    Args:
        share: of several processes; the first one begins the folders.
        started: called by the first process when the folders are begun; the others wait in it until that is so.

    Raises:
        MPlusError: bad input, before any work; out of memory and other failures after some, which is kept.
    """
    share = share or Share()
    loaded = load_model(request.model, request.device, request.dtype, request.quantize)
    request = replace(request, batch=request.batch or default_batch(loaded))
    jobs = prepare(request, plan, loaded)
    if share.rank == 0:
        begin(request, jobs, loaded, command)
    started()
    work = [(job, _pending(job)) for job in jobs]
    total, done, before = sum(len(job.ids) for job in jobs), 0, 0
    for job, pending in work:
        done += len(job.ids) - sum(len(item.questions) for item in pending)
        mine = pending[share.rank :: share.count]
        told = False

        def tell(part: float, words: str, job: Job = job, before: int = before, left: int = len(mine)) -> None:
            nonlocal told
            told = True
            items = len(job.items)
            show(before + (items - left + part * left) / items * len(job.ids), total, f"{job.title}, {words}")

        before += len(job.ids)
        with predictions.Writer(job.pair.path / share.file) as writer:
            for sample in _run(request, job, mine, PeakMemory(loaded.placement.device), tell):
                writer.append(sample)
                done += 1
                if not told:
                    show(done, total, job.title)


def default_batch(loaded: LoadedModel) -> int:
    """Items at a time where nothing was asked for: many for small models, one where memory may be short."""
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    return SMALL_BATCH if parameters < SMALL_MODEL else 1


def _pending(job: Job) -> list[Item]:
    """Items with the questions that have no answer yet."""
    done, _ = predictions.read([job.pair.path / predictions.NAME]) if _merged(job) else ({}, [])
    left = []
    for item in job.items:
        questions = tuple(question for question in item.questions if item.sample_id(question) not in done)
        if questions:
            left.append(replace(item, questions=questions))
    return left


def _merged(job: Job) -> bool:
    return (job.pair.path / predictions.NAME).is_file()


def _run(request: Request, job: Job, items: Sequence[Item], peak: PeakMemory, tell: Tell) -> Iterator[dict[str, Any]]:
    """Samples as they finish, in batches of `request.batch` items."""
    session = len(job.pair.run()["sessions"]) - 1
    rows = request.batch or 1
    for first in range(0, len(items), rows):
        batch = items[first : first + rows]

        def tell_all(part: float, words: str, first: int = first, size: int = len(batch)) -> None:
            tell((first + part * size) / len(items), words)

        before = time.perf_counter()
        try:
            for sample in _answers(request, job, batch, tell_all):
                now = time.perf_counter()
                sample["seconds"]["wall"], before = round(now - before, 6), now
                yield sample | {"session": session, "peak_memory": peak.bytes()}
        except MPlusError:
            raise
        except Exception as error:
            raise _failure(request, job, error) from error


def _answers(request: Request, job: Job, batch: Sequence[Item], tell: Tell) -> Iterator[dict[str, Any]]:
    """The answers to a batch as samples.

    Raises:
        ValueError: the system answered what was not asked, or left something out: a mistake of the system.
    """
    asked = {item.sample_id(question): (item, question) for item in batch for question in item.questions}
    answers: Iterator[Answer]
    if job.task.measures:
        answers = job.task.measure_long(job.system, batch, job.pair.path, tell)
    else:
        answers = job.system.answer(job.task, batch)
    for answer in answers:
        if answer.sample_id not in asked:
            raise ValueError(f"{job.label} answered {answer.sample_id!r}, which was not asked, or twice")
        item, question = asked.pop(answer.sample_id)
        yield predictions.record(job.settings["task"], job.label, item, question, answer, request.whole_prompts)
    if asked:
        raise ValueError(f"{job.label} gave no answer to {next(iter(asked))!r}")


def _failure(request: Request, job: Job, error: Exception) -> MPlusError:
    done = len(predictions.read(predictions.files(job.pair.path))[0])
    kept = f"{done:,} of {len(job.ids):,} samples are finished and kept"
    first_line = (str(error).strip().splitlines() or [""])[0]
    if is_out_of_memory(error):
        rows = request.batch or 1
        keys = [f"--batch (now {rows}): {request.resume_command} --batch {rows // 2}"] if rows > 1 else []
        length = f" (now {request.length:,})" if request.length else ""
        keys.append(f"--length{length}, --dtype bfloat16 or the system's own sizes, with another --out")
        return MPlusError(f"out of memory in {job.title}; {kept}: {first_line}", hint="lower " + "; or ".join(keys))
    return MPlusError(
        f"{job.title}: unexpected {type(error).__name__}: {first_line}; {kept}",
        hint=f"--verbose shows the traceback; {request.resume_command} goes on",
    )
