"""What building LongBook-Event-QA would take: the same steps as the build, with a backend that does not ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mplus_cli.data.chat import ChatRequest, DryRun, Plan, ask_all
from mplus_cli.data.event_qa import prompts
from mplus_cli.data.event_qa.books import Book
from mplus_cli.data.event_qa.characters import Character
from mplus_cli.data.event_qa.reading import EventQAOptions, read_through, take_events

if TYPE_CHECKING:
    from spacy.language import Language
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class BookPlan:
    """A plan, and how much text it is for."""

    books: int
    chunks: int
    asking: Plan


def plan_event_qa(
    books: Sequence[Book],
    pipeline: Language,
    tokenizer: PreTrainedTokenizerBase,
    backend: DryRun,
    options: EventQAOptions,
) -> BookPlan:
    """Count what a build would ask. While events are not known the paper's number of them per chunk is taken."""
    works = read_through(books, pipeline, tokenizer, options, None)
    requests = [request for work in works for request in work.event_requests()]
    found = ask_all(backend, requests, lambda _, text: prompts.read_events(text))
    take_events(works, found)
    wanted = [request for work in works for _, request in work.distractor_requests()]
    ask_all(backend, wanted, lambda _, text: prompts.read_distractors(text))
    guessed = prompts.TYPICAL_EVENTS * sum(asked.answer is None for asked in found)
    typical = typical_request(works[0].characters)
    backend.usage.add(guessed * typical.estimated_input_tokens(), guessed * typical.typical_tokens, guessed)
    plan = backend.plan(len(requests) + len(wanted) + guessed, estimated=guessed > 0)
    return BookPlan(len(works), len(requests), plan)


def typical_request(characters: Sequence[Character]) -> ChatRequest:
    """A request for false events of usual length."""
    sentence = "x" * 4 * prompts.TYPICAL_EVENT_TOKENS
    past, others = [sentence] * prompts.PAST_EVENTS, [sentence] * prompts.TYPICAL_EVENTS
    return prompts.distractors_request(characters, past, sentence, others)
