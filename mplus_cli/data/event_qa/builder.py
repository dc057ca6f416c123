"""Builds LongBook-Event-QA: characters, chunks, events, false events, questions, checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mplus_cli.data.building import BuildFolder, Manifest, Source, Tokenizer
from mplus_cli.data.chat import Asked, Backend, ChatSettings, ask_visibly
from mplus_cli.data.event_qa import prompts
from mplus_cli.data.event_qa.books import Book
from mplus_cli.data.event_qa.counting import book_row, count
from mplus_cli.data.event_qa.mentions import pipeline_identity
from mplus_cli.data.event_qa.quality import flags
from mplus_cli.data.event_qa.questions import make_question
from mplus_cli.data.event_qa.reading import BookInWork, EventQAOptions, aside, read_through, take_events

if TYPE_CHECKING:
    from spacy.language import Language
    from transformers import PreTrainedTokenizerBase

BUILDER = "event-qa"


def parameters(
    books: Sequence[Book], pipeline: Language, tokenizer: Tokenizer, settings: ChatSettings, options: EventQAOptions
) -> dict[str, Any]:
    """What decides the bytes of the build, given the answers of the model."""
    return {
        "books": {book.name: book.sha256 for book in books},
        **settings.identity,
        "prompts": prompts.VERSION,
        "spacy": pipeline_identity(pipeline),
        "tokenizer": asdict(tokenizer),
        "chunk_size": options.chunk_size,
        "characters": options.characters,
        "seed": options.seed,
        "limit": options.limit,
    }


def need_bytes(books: Sequence[Book]) -> float:
    """Of the build and its cached answers together, generously."""
    return 1e6 + 3.0 * sum(len(book.text.encode()) for book in books)


def build_event_qa(
    folder: BuildFolder,
    books: Sequence[Book],
    pipeline: Language,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_identity: Tokenizer,
    backend: Backend,
    options: EventQAOptions,
    bad_rows: int = 0,
) -> Manifest:
    """Ask for everything that is not cached yet, and write questions, flagged questions, set-aside requests and books.

    Args:
        bad_rows: lines of the books' files that could not be read, for the manifest.

    Raises:
        UsageError: no person is found in a book, or the server refuses the requests.
        MPlusError: the cost limit, or a server that keeps failing; what was answered is cached.
    """
    works = read_through(books, pipeline, tokenizer, options, folder)
    requests = [request for work in works for request in work.event_requests()]
    found = ask_visibly("events", backend, requests, lambda _, text: prompts.read_events(text))
    asides = take_events(works, found)
    wanted = [(work, number, request) for work in works for number, request in work.distractor_requests()]
    requests = [request for _, _, request in wanted]
    false = ask_visibly("false events", backend, requests, lambda _, text: prompts.read_distractors(text))
    rows = []
    for (work, number, _), asked in zip(wanted, false, strict=True):
        if asked.value is None:
            event = work.events[number]
            asides.append(aside("false events", work, event.passage, asked, event.text))
        else:
            rows.append(_question(work, number, asked.value, options.seed))
    folder.write_shard("questions.jsonl.gz", [row for row in rows if not row["flags"]], bucket="questions")
    folder.write_shard("flagged.jsonl.gz", [row for row in rows if row["flags"]], bucket="flagged")
    folder.write_shard("set_aside.jsonl.gz", asides, bucket="set aside")
    folder.write_shard("books.jsonl.gz", [book_row(work) for work in works], bucket="books")
    asked_for: list[Asked[list[str]]] = [*found, *false]
    answers = [asked.answer for asked in asked_for if asked.answer is not None and asked.fault is None]
    return folder.finish(
        sources=[
            Source(work.book.name, work.book.sha256, options.licence, note="a book; the revision is its sha256")
            for work in works
        ],
        counts=count(works, rows, asides, answers) | {"broken_rows": bad_rows},
        tokenizer=tokenizer_identity,
        packages=("openai", "spacy", "transformers"),
    )


def _question(work: BookInWork, number: int, false: Sequence[str], seed: int) -> dict[str, Any]:
    past = [earlier.text for earlier in work.events[number - prompts.PAST_EVENTS : number]]
    failed = flags(past, work.events[number].text, false, work.cast)
    return make_question(work.book, work.events, number, false, failed, seed)
