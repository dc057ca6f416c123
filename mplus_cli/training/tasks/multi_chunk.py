"""Multi-chunk: write a document's contexts one after the other, predict what follows from the whole memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mplus_cli.training.contexts import write_contexts
from mplus_cli.training.tasks.documents import after_writing, prepare
from mplus_cli.training.tasks.reading import Text, read_memory
from mplus_cli.training.tasks.work import Outcome, Work


class MultiChunk:
    """The task that teaches reading a full memory (M+ appendix D).

    Contexts are written without gradient, each after the memory tokens of the one before; with `tasks.gradient_writes`
    some of them once more with gradient (ours). Then the target reads `[BOS_l | retrieved | short-term]`, and the
    retriever learns to find the memory tokens of these contexts.

    The released stages 1 and 2 read a simulated drop and update memory after the step; stage 3 updates it before
    reading. Here memory is written first in every stage, by the rule of random drop itself: what the target reads has
    the same distribution.
    """

    def run(self, work: Work) -> Outcome:
        prepared = [prepare(work, example) for example in work.batch]
        graded = [choose_graded(work.rng, len(one.contexts), work.recipe.tasks.gradient_writes, ()) for one in prepared]
        recompute = work.recipe.loss.gradient_checkpointing
        written = write_contexts(work.model, work.memory, [one.contexts for one in prepared], graded, recompute)
        spans = [written.document_span(row) for row in range(len(prepared))]
        texts = [
            Text(one.id, one.target, one.labels, row, span=span)
            for row, (one, span) in enumerate(zip(prepared, spans, strict=True))
        ]
        outcome = read_memory(work, texts, written.graded, train_retriever=True, write_side=True)
        after_writing(work, prepared, spans)
        outcome.tokens = sum(one.tokens for one in prepared)
        return outcome


def choose_graded(rng: np.random.Generator, contexts: int, count: int, preferred: Sequence[int]) -> list[int]:
    """Which of a row's contexts are written with gradient: the newest, then preferred ones, then others."""
    if count == 0:
        return []
    newest = contexts - 1
    order = [newest]
    for pool in (preferred, range(newest)):
        order += [i for i in rng.permutation(list(pool)).astype(int).tolist() if i not in order]
    return sorted(order[:count])
