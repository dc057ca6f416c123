"""Full-context: read a document beside memory that has nothing to do with it."""

from __future__ import annotations

from mplus_cli.core.prefix import TokenPrefix
from mplus_cli.training.tasks.reading import Text, read_memory, text_losses
from mplus_cli.training.tasks.work import Outcome, Work


class FullContext:
    """Stay fluent with irrelevant memory (released code; the M+ paper does not name this task).

    The beginning of the whole document, up to the window, is read with the present memory; loss on every token. A
    document to repeat is read by its plain target. Nothing is written, cached or taught to the retriever. A stage
    without memory reads behind its BOS alone: plain language modelling.
    """

    def run(self, work: Work) -> Outcome:
        window = work.recipe.data.window
        texts = []
        for row, example in enumerate(work.batch):
            if example.repeat:
                ids, labels = list(example.target), list(example.labels)
            else:
                ids = [token for context in example.contexts for token in context] + list(example.target)
                labels = ids
            texts.append(Text(example.id, ids[:window], labels[:window], row))
        if work.rows.memory is not None:
            return read_memory(work, texts)
        losses = text_losses(work, texts, TokenPrefix(work.model, len(texts), None))
        return Outcome(losses.mean(), {"ce": losses.mean().detach()}, sum(len(text.ids) for text in texts))
