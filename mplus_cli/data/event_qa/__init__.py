"""LongBook-Event-QA: which of six events happens next in this book? (paper section 4.1.1)"""

from mplus_cli.data.event_qa.books import Book, read_books
from mplus_cli.data.event_qa.builder import build_event_qa
from mplus_cli.data.event_qa.characters import Character, find_characters, merge_aliases
from mplus_cli.data.event_qa.mentions import load_pipeline
from mplus_cli.data.event_qa.planning import BookPlan, plan_event_qa
from mplus_cli.data.event_qa.reading import EventQAOptions

__all__ = [
    "Book",
    "BookPlan",
    "Character",
    "EventQAOptions",
    "build_event_qa",
    "find_characters",
    "load_pipeline",
    "merge_aliases",
    "plan_event_qa",
    "read_books",
]
