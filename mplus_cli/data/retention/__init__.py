"""Knowledge retention: facts to inject, distractors to inject after them, questions to ask then (figures 3, 5, 8)."""

from mplus_cli.data.retention.builder import RetentionOptions, build_retention
from mplus_cli.data.retention.examples import Example, ExampleSource, open_examples
from mplus_cli.data.retention.filters import Answerer, ChatAnswerer, LocalAnswerer

__all__ = [
    "Answerer",
    "ChatAnswerer",
    "Example",
    "ExampleSource",
    "LocalAnswerer",
    "RetentionOptions",
    "build_retention",
    "open_examples",
]
