"""Builds LongBook-Event-QA: characters, chunks, events, false events, questions, checks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mplus_cli.console import Progress
from mplus_cli.data.building import BuildFolder, Manifest, Source, Tokenizer, atomic_write
from mplus_cli.data.chat import Answer, AnswerCache, Asked, Backend, ChatRequest, ChatSettings, Price, Usage, ask_all
from mplus_cli.data.chat.asking import cached_answers
from mplus_cli.data.chunking import chunks
from mplus_cli.data.event_qa import prompts
from mplus_cli.data.event_qa.books import Book
from mplus_cli.data.event_qa.characters import Character, find_characters, pipeline_identity
from mplus_cli.data.event_qa.prompts import PAST_EVENTS, distractors_request, events_request
from mplus_cli.data.event_qa.quality import CHECKS, BlindScores, Cast, flags
from mplus_cli.data.event_qa.questions import Event, EventCounts, Passage, keep_events, make_question
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from spacy.language import Language
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
BUILDER = "event-qa"


@dataclass(frozen=True)
class EventQAOptions:
    """What decides a build, beside the books and the model that is asked.

    Attributes:
        chunk_size: tokens per chunk.
        characters: how many main characters a book has.
        seed: of the order of the options.
        limit: chunks per book, for a trial; None for all.
        processes: for spaCy; changes nothing but the time.
        licence: of the books, for the manifest.
    """

    chunk_size: int = 4096
    characters: int = 10
    seed: int = 0
    limit: int | None = None
    processes: int = 1
    licence: str | None = None


@dataclass
class _BookInWork:
    """A book, its main characters, the chunks of it with their places, and later its events."""

    book: Book
    characters: list[Character]
    passages: list[Passage]
    cast: Cast
    events: list[Event]
    counts: EventCounts
    tokens: int = 0

    def text_of(self, passage: Passage) -> str:
        return self.book.text[passage.start : passage.end]


def parameters(
    books: Sequence[Book], pipeline: Language, tokenizer: Tokenizer, settings: ChatSettings, options: EventQAOptions
) -> dict[str, Any]:
    """What decides the bytes of the build, given the answers of the model."""
    return {
        "books": {book.name: book.sha256 for book in books},
        "model": settings.model,
        "server": settings.server,
        "temperature": settings.temperature,
        "attempts": settings.attempts,
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
) -> Manifest:
    """Ask for everything that is not cached yet, and write questions, flagged questions, set-aside requests and books.

    Raises:
        UsageError: no person is found in a book, or the server refuses the requests.
        MPlusError: the cost limit, or a server that keeps failing; what was answered is cached.
    """
    works = _prepare(books, pipeline, tokenizer, options, folder)
    found = _ask("events", backend, [request for _, _, request in _event_requests(works)], prompts.read_events)
    asides = _take_events(works, found)
    wanted = _distractor_requests(works)
    false = _ask("false events", backend, [request for _, _, request in wanted], prompts.read_distractors)
    rows = []
    for (work, number, _), asked in zip(wanted, false, strict=True):
        event = work.events[number]
        if asked.value is None:
            asides.append(_aside("false events", work, event.passage, asked, event.text))
            continue
        past = [earlier.text for earlier in work.events[number - PAST_EVENTS : number]]
        failed = flags(past, event.text, asked.value, work.cast)
        rows.append(make_question(work.book, work.events, number, asked.value, failed, options.seed))
    folder.write_shard("questions.jsonl.gz", [row for row in rows if not row["flags"]], bucket="questions")
    folder.write_shard("flagged.jsonl.gz", [row for row in rows if row["flags"]], bucket="flagged")
    folder.write_shard("set_aside.jsonl.gz", asides, bucket="set aside")
    folder.write_shard("books.jsonl.gz", [_book_row(work) for work in works], bucket="books")
    answers = [asked.answer for asked in [*found, *false] if asked.answer is not None and asked.fault is None]
    return folder.finish(
        sources=[
            Source(work.book.name, work.book.sha256, options.licence, note="a book; the revision is its sha256")
            for work in works
        ],
        counts=_counts(works, rows, asides, answers),
        tokenizer=tokenizer_identity,
        packages=("openai", "spacy", "transformers"),
    )


@dataclass(frozen=True)
class Plan:
    """What a build would ask: requests in all and those not answered yet, their tokens and price.

    `estimated` is true where false events could only be guessed at, from the paper's number of events per chunk.
    """

    books: int
    chunks: int
    requests: int
    cached: int
    usage: Usage
    cost: float | None
    estimated: bool


def plan_event_qa(
    books: Sequence[Book],
    pipeline: Language,
    tokenizer: PreTrainedTokenizerBase,
    settings: ChatSettings,
    cache: AnswerCache,
    price: Price | None,
    options: EventQAOptions,
) -> Plan:
    """Count what a build would ask, without asking."""
    works = _prepare(books, pipeline, tokenizer, options, None)
    asked_for = _event_requests(works)
    requests = [request for _, _, request in asked_for]
    known = cached_answers(settings, cache, requests, lambda _, text: prompts.read_events(text))
    usage, cached = Usage(), 0
    event_tokens = prompts.TYPICAL_EVENT_TOKENS
    for request, asked in zip(requests, known, strict=True):
        if asked is None:
            usage.add(request.estimated_input_tokens(), prompts.TYPICAL_EVENTS * event_tokens)
        else:
            cached += 1
    done = [asked for asked in known if asked is not None]
    guessed = (len(requests) - len(done)) * prompts.TYPICAL_EVENTS
    unknown = (asked or Asked([], None, None, 0) for asked in known)
    _take_events(works, list(unknown))
    wanted = [request for _, _, request in _distractor_requests(works)]
    for request, answer in zip(wanted, cached_answers(settings, cache, wanted, _read_distractors), strict=True):
        if answer is None:
            usage.add(request.estimated_input_tokens(), prompts.DISTRACTORS * event_tokens)
        else:
            cached += 1
    if guessed:
        cast = works[0].characters
        sentence = "x" * 4 * event_tokens
        typical = distractors_request(cast, [sentence] * PAST_EVENTS, sentence, [sentence] * prompts.TYPICAL_EVENTS)
        tokens = typical.estimated_input_tokens()
        usage.add(guessed * tokens, guessed * prompts.DISTRACTORS * event_tokens, guessed)
    total = len(requests) + len(wanted) + guessed
    cost = price.of(usage) if price else None
    return Plan(len(works), len(requests), total, cached, usage, cost, bool(guessed))


def _prepare(
    books: Sequence[Book],
    pipeline: Language,
    tokenizer: PreTrainedTokenizerBase,
    options: EventQAOptions,
    folder: BuildFolder | None,
) -> list[_BookInWork]:
    works = []
    with Progress("finding characters", sum(len(book.text) for book in books)) as progress:
        done = 0
        for book in books:
            progress.update(done, book.name)
            characters = _characters(book, pipeline, options, folder)
            if not characters:
                raise UsageError(f"{book.name}: no person is named in it", hint="leave it out, or try another --spacy")
            passages, tokens = _passages(book, tokenizer, options)
            works.append(_BookInWork(book, characters, passages, Cast(characters), [], EventCounts(), tokens))
            done += len(book.text)
    return works


def _characters(book: Book, pipeline: Language, options: EventQAOptions, folder: BuildFolder | None) -> list[Character]:
    """Found once per build: reading a long novel takes spaCy a minute."""
    path = folder.work / "characters" / f"{book.sha256}.json" if folder else None
    if path is not None and path.is_file():
        return [Character(**record) for record in json.loads(path.read_bytes())]
    characters = find_characters(pipeline, book.text, options.characters, options.processes)
    if path is not None:
        with atomic_write(path) as file:
            file.write(json.dumps([asdict(character) for character in characters]).encode())
    return characters


def _passages(book: Book, tokenizer: PreTrainedTokenizerBase, options: EventQAOptions) -> tuple[list[Passage], int]:
    passages: list[Passage] = []
    tokens = 0
    for chunk in chunks(book.text, tokenizer, options.chunk_size):
        if options.limit is not None and len(passages) == options.limit:
            break
        passages.append(Passage(len(passages), chunk.start, chunk.end, tokens, tokens + len(chunk.ids)))
        tokens += len(chunk.ids)
    return passages, tokens


def _event_requests(works: Sequence[_BookInWork]) -> list[tuple[_BookInWork, Passage, ChatRequest]]:
    return [
        (work, passage, events_request(work.characters, work.text_of(passage)))
        for work in works
        for passage in work.passages
    ]


def _take_events(works: Sequence[_BookInWork], found: Sequence[Asked[list[str]]]) -> list[dict[str, Any]]:
    """Give every book its events; returns the chunks that had to be set aside."""
    asides, answers = [], iter(found)
    for work in works:
        told: list[tuple[Passage, str]] = []
        for passage, asked in zip(work.passages, answers, strict=False):
            if asked.value is None:
                asides.append(_aside("events", work, passage, asked, None))
            told += [(passage, event) for event in asked.value or []]
        work.events = keep_events(told, work.cast, work.counts)
    return asides


def _distractor_requests(works: Sequence[_BookInWork]) -> list[tuple[_BookInWork, int, ChatRequest]]:
    """One per event that five others precede."""
    requests = []
    for work in works:
        for number in range(PAST_EVENTS, len(work.events)):
            event, past = work.events[number], work.events[number - PAST_EVENTS : number]
            others = [e for e in work.events if e.passage is event.passage and e is not event and e not in past]
            texts = [earlier.text for earlier in past], event.text, [other.text for other in others]
            requests.append((work, number, distractors_request(work.characters, *texts)))
    return requests


def _ask(label: str, backend: Backend, requests: Sequence[ChatRequest], read: Callable[[str], T]) -> list[Asked[T]]:
    with Progress(label, len(requests)) as progress:

        def show(done: int, total: int) -> None:
            progress.total = max(total, 1)
            cost = backend.budget.cost
            progress.update(done, f"{done:,}/{total:,} answers" + (f", ${cost:.2f} spent" if cost is not None else ""))

        return ask_all(backend, requests, lambda _, text: read(text), show)


def _aside(what: str, work: _BookInWork, passage: Passage, asked: Asked[Any], event: str | None) -> dict[str, Any]:
    row = {"asked_for": what, "book": work.book.name, "passage": passage.as_json(), "reason": asked.fault}
    return row | ({"event": event} if event else {})


def _book_row(work: _BookInWork) -> dict[str, Any]:
    """A book as evaluation needs it: text, chunks, characters, events."""
    return {
        "book": work.book.name,
        "sha256": work.book.sha256,
        "characters": [asdict(character) for character in work.characters],
        "events": [
            {"text": event.text, "passage": event.passage.index, "characters": list(event.characters)}
            for event in work.events
        ],
        "passages": [passage.as_json() for passage in work.passages],
        "text": work.book.text,
    }


def _counts(
    works: Sequence[_BookInWork],
    rows: Sequence[dict[str, Any]],
    asides: Sequence[dict[str, Any]],
    answers: Sequence[Answer],
) -> dict[str, Any]:
    good = [row for row in rows if not row["flags"]]
    blind = BlindScores.of((row["options"], row["answer"]) for row in good)
    usage = Usage(len(answers), sum(a.input_tokens for a in answers), sum(a.output_tokens for a in answers))
    flagged = Counter(flag for row in rows for flag in row["flags"])
    by_book = Counter(row["book_sha256"] for row in good)
    return {
        "books": {
            work.book.name: {
                "tokens": work.tokens,
                "chunks": len(work.passages),
                **asdict(work.counts),
                "questions": by_book[work.book.sha256],
            }
            for work in works
        },
        "questions": len(good),
        "flagged": {"questions": len(rows) - len(good), **{check: flagged[check] for check in CHECKS}},
        "events_left_out": {
            "naming no main character": sum(work.counts.no_character for work in works),
            "repeating an earlier event": sum(work.counts.repeated for work in works),
        },
        "set_aside": dict(sorted(Counter(f"{row['asked_for']}: {row['reason']}" for row in asides).items())),
        "guessing_by_length": {**asdict(blind), "chance": round(1 / (prompts.DISTRACTORS + 1), 4)},
        "answers": {**asdict(usage), "models": sorted({answer.model for answer in answers})},
    }


def _read_distractors(index: int, text: str) -> list[str]:
    return prompts.read_distractors(text)
