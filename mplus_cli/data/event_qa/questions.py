"""From the events of a book to questions: five past events, six options in an order drawn by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from mplus_cli.data.event_qa.books import Book
from mplus_cli.data.event_qa.prompts import PAST_EVENTS
from mplus_cli.data.event_qa.quality import Cast, similar


@dataclass(frozen=True)
class Passage:
    """A chunk of a book: its number, and the characters and tokens [start, end) of the book it covers."""

    index: int
    start: int
    end: int
    first_token: int
    last_token: int

    def as_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "characters": [self.start, self.end],
            "tokens": [self.first_token, self.last_token],
        }


@dataclass(frozen=True)
class Event:
    """Something that happens in a book: one sentence, its passage, and the main characters it names."""

    text: str
    passage: Passage
    characters: tuple[str, ...]


@dataclass
class EventCounts:
    """What became of the sentences of the model."""

    kept: int = 0
    no_character: int = 0
    repeated: int = 0


def keep_events(found: Sequence[tuple[Passage, str]], cast: Cast, counts: EventCounts) -> list[Event]:
    """Leave out events that name no main character, and those that one of the last ten kept tells already.

    Both are left out before money is spent on false events for them.
    """
    kept: list[Event] = []
    for passage, text in found:
        characters = tuple(cast.named(text))
        if not characters:
            counts.no_character += 1
        elif any(similar(text, event.text) for event in kept[-2 * PAST_EVENTS :]):
            counts.repeated += 1
        else:
            counts.kept += 1
            kept.append(Event(text, passage, characters))
    return kept


def make_question(
    book: Book, events: Sequence[Event], number: int, false: Sequence[str], flags: Sequence[str], seed: int
) -> dict[str, Any]:
    """The question for event `number` of a book: which of the six options happens after the five past events?"""
    event, past = events[number], events[number - PAST_EVENTS : number]
    options = [event.text, *false]
    order = list(range(len(options)))
    Random(f"{seed}/{book.sha256}/{number}").shuffle(order)
    return {
        "id": f"{book.sha256[:12]}-{number:05d}",
        "book": book.name,
        "book_sha256": book.sha256,
        "event": number,
        "past_events": [earlier.text for earlier in past],
        "options": [options[index] for index in order],
        "answer": order.index(0),
        "characters": list(event.characters),
        "passage": event.passage.as_json(),
        "past_passages": [earlier.passage.index for earlier in past],
        "flags": list(flags),
    }
