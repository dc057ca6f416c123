"""Questions: write a stretch of a document, then answer questions about facts told in it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mplus_cli.training.contexts import Written, write_contexts
from mplus_cli.training.lending import lent_stores
from mplus_cli.training.losses import IGNORE, MaskedBatchError
from mplus_cli.training.tasks.multi_chunk import choose_graded
from mplus_cli.training.tasks.reading import Text, behind_tokens, read_memory, text_losses
from mplus_cli.training.tasks.work import Outcome, Work

if TYPE_CHECKING:
    from mplus_cli.training.examples import Example, Question

NEWEST, GRADED = 1 / 6, 2 / 3  # share of a memory's questions about the newest context, and about other graded ones


@dataclass(frozen=True)
class _Stretch:
    """Consecutive contexts of a document, and the questions about them with contexts renumbered."""

    id: str
    contexts: list[list[int]]
    questions: list[tuple[Question, int]]


class Questions:
    """Memory put to use (ours): short questions, each about one sentence of one chunk, written at any distance.

    Every question searches long-term memory with its prompt and is scored on its answer; all questions to a memory are
    read side by side and share its short-term keys and values. Two questions in three are about contexts that are
    written with gradient, so that writing learns what is asked; and one such context is rebuilt token by token from
    its memory tokens and those before it, because answers alone are too few labels for compression to begin.
    """

    def run(self, work: Work) -> Outcome:
        settings, count = work.recipe.tasks.questions, work.recipe.tasks.gradient_writes
        stretches = [self._stretch(work, example) for example in work.batch]
        graded = [
            choose_graded(work.rng, len(one.contexts), count, sorted({context for _, context in one.questions}))
            for one in stretches
        ]
        recompute = work.recipe.loss.gradient_checkpointing
        written = write_contexts(work.model, work.memory, [one.contexts for one in stretches], graded, recompute)
        for row, one in enumerate(stretches):
            work.rows.contexts[row] += len(one.contexts)
        texts = [
            self._text(row, one, written, *asked)
            for row, one in enumerate(stretches)
            for asked in choose_questions(work.rng, one.questions, graded[row], len(one.contexts), settings.per_memory)
        ]
        if not texts:
            raise MaskedBatchError([one.id for one in stretches])
        lend = settings.lend_stores > 0 and work.rng.random() < settings.lend_stores
        with lent_stores(work.memory, work.rng) if lend else nullcontext():
            outcome = read_memory(work, texts, written.graded, train_retriever=True, help=work.draw.help)
        outcome.tokens += sum(len(ids) for one in stretches for ids in one.contexts)
        if written.graded and settings.rebuild:
            self._rebuild(work, stretches, written, outcome)
        return outcome

    def _stretch(self, work: Work, example: Example) -> _Stretch:
        """As many contexts as were drawn; of a longer document a random stretch, preferably with questions."""
        count = min(work.draw.contexts, len(example.contexts))
        start = int(work.rng.integers(0, len(example.contexts) - count + 1))
        asked = [question for question in example.questions if count > question.cut]
        if asked and not any(start + q.cut <= q.context < start + count for q in asked):
            chosen = asked[int(work.rng.integers(len(asked)))]
            start = max(0, min(chosen.context - chosen.cut, len(example.contexts) - count))
        inside = [(q, q.context - start) for q in example.questions if start + q.cut <= q.context < start + count]
        return _Stretch(example.id, example.contexts[start : start + count], inside)

    def _text(self, row: int, one: _Stretch, written: Written, question: Question, context: int) -> Text:
        prompt, answer = list(question.prompt), list(question.answer)
        labels = [IGNORE] * len(prompt) + answer
        return Text(one.id, prompt + answer, labels, row, len(prompt), written.spans[row][context])

    def _rebuild(self, work: Work, stretches: Sequence[_Stretch], written: Written, outcome: Outcome) -> None:
        """One graded context of every row, token by token."""
        texts, tokens = [], []
        for row, one in enumerate(stretches):
            own = [write for write in written.graded if write.row == row]
            write = own[int(work.rng.integers(len(own)))]
            ids = one.contexts[write.context]
            texts.append(Text(one.id, ids, ids, row))
            before = [] if write.before is None else [write.before]
            tokens.append(torch.cat([*before, write.tokens], dim=1))
        loss = text_losses(work, texts, behind_tokens(work, texts, tokens)).mean()
        outcome.loss = outcome.loss + work.recipe.tasks.questions.rebuild * loss
        outcome.parts["rebuild"] = loss.detach()
        outcome.tokens += sum(len(text.ids) for text in texts)


def choose_questions(
    rng: np.random.Generator,
    questions: Sequence[tuple[Question, int]],
    graded: Sequence[int],
    contexts: int,
    count: int,
) -> list[tuple[Question, int]]:
    """At most `count` questions: first about the newest context, then about other graded ones, then about any."""
    order = [questions[i] for i in rng.permutation(len(questions))]
    newest = [one for one in order if one[1] == contexts - 1]
    others = [one for one in order if one[1] in graded and one[1] != contexts - 1]
    chosen = newest[: max(1, round(NEWEST * count))] + others[: round(GRADED * count)]
    taken = {id(one) for one in chosen}
    return (chosen + [one for one in order if id(one) not in taken])[:count]
