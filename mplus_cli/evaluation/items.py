"""What is asked and what is answered: documents to remember, questions at points among them, answers.

An item is one memory: its documents are remembered in order, and each of its questions is asked when the first
`after` of them have been. One pass over the documents serves all questions, so asking must not disturb the memory. A
sample is one question of one item; its id is `ITEM/QUESTION`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Truncation = Literal["none", "left", "middle", "chunks"]


@dataclass(frozen=True)
class Document:
    """One thing to be remembered. A system cuts it into chunks of its own; two documents never share a chunk."""

    text: str
    name: str = ""


@dataclass(frozen=True)
class Question:
    """One question, or one point of measurement of a measuring task.

    Attributes:
        id: unique within its item; letters, digits and `._-`.
        prompt: what a memory system reads after the documents, whole (`Question: ... Answer:`).
        recent: the end of the text, which a memory system does not write but reads right before the prompt. It goes on
            where the last document ends; systems that read documents as text read it there.
        references: acceptable answers.
        after: how many of the item's documents have been remembered when it is asked.
        max_new_tokens: longest answer.
        options: if there are any, the system gives the log-likelihood of each one as the answer too.
        metadata: plain JSON that tables group by and plots use (distance in tokens, depth, kind ...).
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    after: int
    max_new_tokens: int = 10
    options: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    recent: str = ""


@dataclass(frozen=True)
class Item:
    """Documents in the order they are remembered, and what is asked about them.

    Attributes:
        id: unique within its task; letters, digits and `._-`. The seed of the item's memory is made of it.
        metadata: plain JSON, added to that of every question (which wins).
    """

    id: str
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def sample_id(self, question: Question) -> str:
        """The id of one sample."""
        return f"{self.id}/{question.id}"

    def context(self, question: Question, joint: str = "\n\n") -> str:
        """The text that has been told when the question is asked: the documents, and what comes right before it."""
        return joint.join(document.text for document in self.documents[: question.after]) + question.recent


@dataclass
class Answer:
    """What a system returns for one question.

    Attributes:
        item, question: ids of what was asked.
        text: the answer after the stop rule; empty for measuring tasks.
        raw: what was generated, before the stop rule.
        prompt: the exact text read. For systems that read documents as text, documents included and cut as read.
        prompt_tokens: tokens of `prompt`, as read.
        context_tokens: tokens of documents that the system was given before this question.
        truncated_tokens: how many of these it did not read (or, for retrieval of text chunks, did not pick).
        truncation: where they were cut away.
        answer_tokens: generated tokens.
        stop: why generation ended: `end`, `line` or `length`.
        seconds: `remember` and `ask`: this sample's part of the wall time. The time of a batch is divided by its rows,
            and what was remembered counts for the first question after it, so that sums over samples are wall time.
        extra: plain JSON: `option_logprobs`, `option_tokens`, `option_likeliest` (see `prompting.Weighed`), counts of
            what was retrieved, everything a task looks at or measures.
    """

    item: str
    question: str
    text: str = ""
    raw: str = ""
    prompt: str = ""
    prompt_tokens: int = 0
    context_tokens: int = 0
    truncated_tokens: int = 0
    truncation: Truncation = "none"
    answer_tokens: int = 0
    stop: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def sample_id(self) -> str:
        return f"{self.item}/{self.question}"
