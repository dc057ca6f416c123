"""Knowledge retention: is a fact still known after so many tokens of other text? (paper section 4.3)"""

from mplus_cli.data.retention.builder import build_retention, retention_rows
from mplus_cli.data.retention.choosing import Filters, RetentionOptions, choose_examples
from mplus_cli.data.retention.distractors import make_distractors
from mplus_cli.data.retention.examples import Example, ExampleSource, open_examples
from mplus_cli.data.retention.filters import Answerer, ChatAnswerer, LocalAnswerer

__all__ = [
    "Answerer",
    "ChatAnswerer",
    "Example",
    "ExampleSource",
    "Filters",
    "LocalAnswerer",
    "RetentionOptions",
    "build_retention",
    "choose_examples",
    "make_distractors",
    "open_examples",
    "retention_rows",
]
