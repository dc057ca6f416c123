"""Revisit: ask again for the target of a document that was written a while ago."""

from __future__ import annotations

import torch

from mplus_cli.training.rows import CachedTarget
from mplus_cli.training.tasks.multi_chunk import MultiChunk
from mplus_cli.training.tasks.reading import Text, read_memory
from mplus_cli.training.tasks.work import Outcome, Work


class Revisit:
    """The task against forgetting (MemoryLLM section 3.2.3, M+ appendix D).

    The step's new documents are passed over and nothing is written. The cached targets read the whole memory, in which
    their contexts have thinned out meanwhile or moved to long-term memory; what is left of them are the retriever's
    positives. The retriever learns on the steps whose `full_memory` flag is set, as published.
    """

    def run(self, work: Work) -> Outcome:
        cached = [one for one in work.rows.cached if one is not None]
        if len(cached) < len(work.rows.cached):
            # A process that joined a resumed run has nothing to ask for yet; it takes the documents as new ones.
            return MultiChunk().run(work)
        outcome = read_memory(
            work, [self._text(row, one) for row, one in enumerate(cached)], train_retriever=work.draw.full_memory
        )
        distance = [now - one.contexts for now, one in zip(work.rows.contexts, cached, strict=True)]
        outcome.parts["revisit_distance"] = torch.tensor(distance).float().mean()
        outcome.ids = [one.id for one in cached]
        return outcome

    def _text(self, row: int, one: CachedTarget) -> Text:
        return Text(one.id, one.target, one.labels, row, span=one.span)
