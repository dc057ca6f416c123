"""Copying: random token strings followed by copies of themselves."""

from __future__ import annotations

import numpy as np

from mplus_cli.core.prefix import TokenPrefix
from mplus_cli.training.losses import IGNORE
from mplus_cli.training.tasks.reading import Text, text_losses
from mplus_cli.training.tasks.work import Outcome, Work


class Copying:
    """The first thing a backbone made from nothing must learn (ours): binding names to facts is built on it.

    A string of random tokens is repeated to the end of the row; loss on the copies. The step's documents are passed
    over.
    """

    def run(self, work: Work) -> Outcome:
        settings = work.recipe.tasks.copying
        vocabulary = len(work.tokenizer)
        texts = []
        for row in range(settings.rows):
            size = int(work.rng.integers(settings.shortest, settings.longest + 1))
            string = work.rng.integers(0, vocabulary, size)
            ids = np.tile(string, settings.length // size + 1)[: settings.length].tolist()
            texts.append(Text(f"random string {row}", ids, [IGNORE] * size + ids[size:], row))
        loss = text_losses(work, texts, TokenPrefix(work.model, len(texts), None)).mean()
        outcome = Outcome(loss, {"ce": loss.detach()}, sum(len(text.ids) for text in texts))
        outcome.ids = [text.id for text in texts]
        return outcome
