"""LongBook-Event-QA: which of six events happens next in this book? (paper section 4.1.1)"""

from mplus_cli.data.event_qa.books import Book, read_books
from mplus_cli.data.event_qa.builder import EventQAOptions, Plan, build_event_qa, plan_event_qa
from mplus_cli.data.event_qa.characters import Character, find_characters, load_pipeline, merge_aliases

__all__ = [
    "Book",
    "Character",
    "EventQAOptions",
    "Plan",
    "build_event_qa",
    "find_characters",
    "load_pipeline",
    "merge_aliases",
    "plan_event_qa",
    "read_books",
]
