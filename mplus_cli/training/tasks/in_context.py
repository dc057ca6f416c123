"""In-context: a context and questions about it in one text, without memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mplus_cli.core.prefix import TokenPrefix
from mplus_cli.training.losses import IGNORE, MaskedBatchError, next_token_losses
from mplus_cli.training.tasks.reading import Text, read, right_padded
from mplus_cli.training.tasks.work import Outcome, Work

if TYPE_CHECKING:
    from mplus_cli.training.examples import Example


class InContext:
    """Answering before there is memory (ours): a small backbone must be able to do it here before it can from memory.

    Every document gives one of its contexts with the questions about it, in random order; the loss is that of the
    answers, plus `text_weight` times that of the context.
    """

    def run(self, work: Work) -> Outcome:
        settings = work.recipe.tasks.in_context
        answers, passages = [], []
        for row, example in enumerate(work.batch):
            answered, passage = self._text(work, row, example)
            answers.append(answered)
            passages.append(passage)
        ids, sparse = right_padded(answers)
        dense = right_padded(passages)[1]
        hidden = read(work.model, ids, TokenPrefix(work.model, len(ids), None))
        names = [example.id for example in work.batch]
        asked = [i for i, text in enumerate(answers) if any(label != IGNORE for label in text.labels)]
        if not asked:
            raise MaskedBatchError(names)
        answer = next_token_losses(work.model, hidden[asked], sparse[asked], [names[i] for i in asked]).mean()
        outcome = Outcome(answer, {"ce": answer.detach()}, sum(len(text.ids) for text in answers))
        if settings.text_weight:
            text = next_token_losses(work.model, hidden, dense, names).mean()
            outcome.loss = outcome.loss + settings.text_weight * text
            outcome.parts["text"] = text.detach()
        return outcome

    def _text(self, work: Work, row: int, example: Example) -> tuple[Text, Text]:
        """The same tokens twice: with labels on the answers, and with labels on the context."""
        whole = [question for question in example.questions if not question.cut]
        asked = sorted({question.context for question in whole})
        context = int(work.rng.choice(asked or len(example.contexts)))
        passage = list(example.contexts[context])
        ids, labels = list(passage), [IGNORE] * len(passage)
        about = [question for question in whole if question.context == context]
        for i in work.rng.permutation(len(about))[: work.recipe.tasks.in_context.questions]:
            prompt, answer = list(about[i].prompt), list(about[i].answer)
            ids += prompt + answer
            labels += [IGNORE] * len(prompt) + answer
        dense = passage + [IGNORE] * (len(ids) - len(passage))
        return Text(example.id, ids, labels, row), Text(example.id, ids, dense, row)
