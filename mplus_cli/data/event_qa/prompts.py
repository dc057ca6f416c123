"""What the chat model is asked, and how its answers are read. Who changes the wording raises VERSION."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mplus_cli.data.chat import ChatRequest
from mplus_cli.data.chat.asking import UnusableAnswerError
from mplus_cli.data.event_qa.characters import Character

VERSION = 1
DISTRACTORS = 5
PAST_EVENTS = 5
TYPICAL_EVENTS = 11  # per chunk of 4,096 tokens: the paper's 2,638 events in five books of about 192k tokens
TYPICAL_EVENT_TOKENS = 35

_EVENTS_SYSTEM = """\
You read a novel passage by passage and record what happens to its main characters.
List the events of the passage that the main characters cause or experience, in the order of the passage.
- One sentence per event, at most 30 words, in the past tense.
- Name every character involved; write no sentence in which a pronoun stands alone for a person.
- Only what happens in this passage itself: nothing remembered, planned, hoped for or reported, no descriptions.
- Specific enough that a reader of the book recognizes the moment; no two sentences about the same event.
- Write from the passage alone, not from what you know about the book.
If no main character does or experiences anything, give an empty list."""

_DISTRACTORS_SYSTEM = """\
You write wrong options for a multiple choice question about a novel: which event happens next?
You are given the main characters, events that happened before, and the event that did happen next.
Write five events that did not happen but could have, as if by the same hand.
- Each must differ from the true event in what happens, not in the wording, and must not be true of the book.
- Each names at least one main character; together they involve about the same characters as the true event.
- About as long as the true event, within five words; the same tense, tone and amount of detail.
- None repeats another, the true event, or an event that happened before."""

_LIST_SCHEMA = {
    "type": "object",
    "properties": {"events": {"type": "array", "items": {"type": "string"}}},
    "required": ["events"],
    "additionalProperties": False,
}


def events_request(characters: Sequence[Character], passage: str) -> ChatRequest:
    """Asks for the events of a chunk of a book."""
    user = f"Main characters of the book:\n{_cast(characters)}\n\nThe passage:\n<passage>\n{passage}\n</passage>"
    typical = TYPICAL_EVENTS * TYPICAL_EVENT_TOKENS
    return ChatRequest(_EVENTS_SYSTEM, user, 3000, typical, _LIST_SCHEMA, "events")


def distractors_request(
    characters: Sequence[Character], past: Sequence[str], event: str, others: Sequence[str]
) -> ChatRequest:
    """Asks for five false events. `others` are true events of the same passage, which must not be used either."""
    parts = [f"Main characters of the book:\n{_cast(characters)}", f"Happened before:\n{_list(past)}"]
    parts.append(f"The true next event:\n- {event}")
    if others:
        parts.append(f"Happened around the same time, so these are no false events:\n{_list(others)}")
    typical = DISTRACTORS * TYPICAL_EVENT_TOKENS
    return ChatRequest(_DISTRACTORS_SYSTEM, "\n\n".join(parts), 800, typical, _LIST_SCHEMA, "false_events")


def read_events(text: str) -> list[str]:
    """The events in an answer, in order; an empty list is an answer.

    Raises:
        UnusableAnswerError: it is not what the schema says.
    """
    events = _read_list(text)
    return list(dict.fromkeys(events))


def read_distractors(text: str) -> list[str]:
    """Five different false events.

    Raises:
        UnusableAnswerError: it is not what the schema says, or there are fewer.
    """
    events = list({" ".join(event.casefold().split()).rstrip("."): event for event in _read_list(text)}.values())
    if len(events) < DISTRACTORS:
        raise UnusableAnswerError("fewer than five different options")
    return events[:DISTRACTORS]


def _read_list(text: str) -> list[str]:
    try:
        answer: Any = json.loads(text)
        events = answer["events"]
        if not isinstance(events, list) or not all(isinstance(event, str) for event in events):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise UnusableAnswerError("malformed") from error
    return [" ".join(event.split()) for event in events if event.strip()]


def _cast(characters: Sequence[Character]) -> str:
    lines = []
    for character in characters:
        others = [alias for alias in character.aliases if alias != character.name][:6]
        lines.append(f"- {character.name}" + (f" (also: {', '.join(others)})" if others else ""))
    return "\n".join(lines)


def _list(events: Sequence[str]) -> str:
    return "\n".join(f"- {event}" for event in events)
