"""What the tasks that write a new document have in common: which contexts, which target, and the cache of targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mplus_cli.training.contexts import Span
from mplus_cli.training.tasks.repeat import repeat_target
from mplus_cli.training.tasks.work import Work

if TYPE_CHECKING:
    from mplus_cli.training.examples import Example


@dataclass(frozen=True)
class Prepared:
    """A document cut to what one step writes and asks."""

    id: str
    contexts: list[list[int]]
    target: list[int]
    labels: list[int]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.contexts)) + len(self.target)


def prepare(work: Work, example: Example) -> Prepared:
    """The last `draw.contexts` contexts before the target; of a document to repeat the first ones, and their text."""
    count = work.draw.contexts
    if not example.repeat:
        return Prepared(example.id, example.contexts[-count:], list(example.target), list(example.labels))
    contexts = example.contexts[:count]
    return Prepared(example.id, contexts, *repeat_target(work, contexts))


def after_writing(work: Work, prepared: Sequence[Prepared], spans: Sequence[Span]) -> None:
    """Count the contexts, and cache the targets if this step's documents are to be asked for again."""
    for row, (document, span) in enumerate(zip(prepared, spans, strict=True)):
        work.rows.contexts[row] += len(document.contexts)
        if work.draw.cache:
            work.rows.remember(row, document.id, document.target, document.labels, span)
