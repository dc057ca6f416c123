"""What a build reports of itself, and the rows of its books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mplus_cli.data.chat import Answer, Usage
from mplus_cli.data.event_qa import prompts
from mplus_cli.data.event_qa.quality import CHECKS, BlindScores
from mplus_cli.data.event_qa.reading import BookInWork


def book_row(work: BookInWork) -> dict[str, Any]:
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


def count(
    works: Sequence[BookInWork],
    rows: Sequence[dict[str, Any]],
    asides: Sequence[dict[str, Any]],
    answers: Sequence[Answer],
) -> dict[str, Any]:
    """The numbers of a manifest: by book, failed checks, what was left out or set aside, what answers took."""
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
