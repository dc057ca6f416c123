"""The chronicle: a synthetic world of invented people, for training and testing memory.

`Chronicle.generate` writes a whole text with its facts and questions, `iter_paragraphs` streams one without end,
`sample_passage` gives the short passages that fill training chunks. Everything is a function of the seed.
"""

from mplus_cli.data.chronicle.chronicle import Chronicle, iter_paragraphs, sample_passage, write_sample
from mplus_cli.data.chronicle.names import Namer, name_space, split_of
from mplus_cli.data.chronicle.prose import Fact, Passage
from mplus_cli.data.chronicle.questions import Question, answer_text, question_prompt
from mplus_cli.data.chronicle.world import ChronicleConfig, World

__all__ = [
    "Chronicle",
    "ChronicleConfig",
    "Fact",
    "Namer",
    "Passage",
    "Question",
    "World",
    "answer_text",
    "iter_paragraphs",
    "name_space",
    "question_prompt",
    "sample_passage",
    "split_of",
    "write_sample",
]
