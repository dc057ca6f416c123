"""What is known of each book while it is worked on: characters and chunks, then the events a model found in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mplus_cli.console import Progress
from mplus_cli.data.building import BuildFolder, atomic_write
from mplus_cli.data.chat import Asked, ChatRequest
from mplus_cli.data.chunking import chunks
from mplus_cli.data.event_qa.books import Book
from mplus_cli.data.event_qa.characters import Character, find_characters
from mplus_cli.data.event_qa.prompts import PAST_EVENTS, distractors_request, events_request
from mplus_cli.data.event_qa.quality import Cast
from mplus_cli.data.event_qa.questions import Event, EventCounts, Passage, keep_events
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from spacy.language import Language
    from transformers import PreTrainedTokenizerBase


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
class BookInWork:
    """A book, its main characters, the chunks of it with their places, and later its events."""

    book: Book
    characters: list[Character]
    passages: list[Passage]
    cast: Cast
    events: list[Event]
    counts: EventCounts
    tokens: int

    def event_requests(self) -> list[ChatRequest]:
        """One per passage."""
        return [
            events_request(self.characters, self.book.text[passage.start : passage.end]) for passage in self.passages
        ]

    def distractor_requests(self) -> Iterator[tuple[int, ChatRequest]]:
        """(number of the event, request): one per event that five others precede."""
        for number in range(PAST_EVENTS, len(self.events)):
            event, past = self.events[number], self.events[number - PAST_EVENTS : number]
            others = [e for e in self.events if e.passage is event.passage and e is not event and e not in past]
            texts = [earlier.text for earlier in past], event.text, [other.text for other in others]
            yield number, distractors_request(self.characters, *texts)


def read_through(
    books: Sequence[Book],
    pipeline: Language,
    tokenizer: PreTrainedTokenizerBase,
    options: EventQAOptions,
    folder: BuildFolder | None,
) -> list[BookInWork]:
    """Find the characters and cut the chunks of every book; characters found are kept in `folder` for a resumed build.

    Raises:
        UsageError: no person is named in a book.
    """
    works = []
    with Progress("finding characters", sum(len(book.text) for book in books), "characters") as progress:
        done = 0
        for book in books:

            def show(read: int, done: int = done, name: str = book.name) -> None:
                progress.update(done + read, name)

            characters = _characters(book, pipeline, options, folder, show)
            if not characters:
                raise UsageError(f"{book.name}: no person is named in it", hint="leave it out, or try another --spacy")
            passages, tokens = cut_passages(book, tokenizer, options)
            works.append(BookInWork(book, characters, passages, Cast(characters), [], EventCounts(), tokens))
            done += len(book.text)
    return works


def _characters(
    book: Book,
    pipeline: Language,
    options: EventQAOptions,
    folder: BuildFolder | None,
    on_progress: Callable[[int], None],
) -> list[Character]:
    """Found once per build: reading a long novel takes spaCy a minute."""
    path = folder.work / "characters" / f"{book.sha256}.json" if folder else None
    if path is not None and path.is_file():
        return [Character(**record) for record in json.loads(path.read_bytes())]
    characters = find_characters(pipeline, book.text, options.characters, options.processes, on_progress)
    if path is not None:
        with atomic_write(path) as file:
            file.write(json.dumps([asdict(character) for character in characters]).encode())
    return characters


def cut_passages(book: Book, tokenizer: PreTrainedTokenizerBase, options: EventQAOptions) -> tuple[list[Passage], int]:
    """The chunks of a book as the model sees them, and their tokens together."""
    passages: list[Passage] = []
    tokens = 0
    for chunk in chunks(book.text, tokenizer, options.chunk_size):
        if options.limit is not None and len(passages) == options.limit:
            break
        passages.append(Passage(len(passages), chunk.start, chunk.end, tokens, tokens + len(chunk.ids)))
        tokens += len(chunk.ids)
    return passages, tokens


def take_events(works: Sequence[BookInWork], found: Sequence[Asked[list[str]]]) -> list[dict[str, Any]]:
    """Give every book its events; returns the chunks that had to be set aside."""
    asides, answers = [], iter(found)
    for work in works:
        told: list[tuple[Passage, str]] = []
        for passage, asked in zip(work.passages, answers, strict=False):
            if asked.value is None:
                asides.append(aside("events", work, passage, asked))
            told += [(passage, event) for event in asked.value or []]
        work.events = keep_events(told, work.cast, work.counts)
    return asides


def aside(what: str, work: BookInWork, passage: Passage, asked: Asked[Any], event: str | None = None) -> dict[str, Any]:
    """The row of a request without a usable answer."""
    row = {"asked_for": what, "book": work.book.name, "passage": passage.as_json(), "reason": asked.fault}
    return row | ({"event": event} if event else {})
