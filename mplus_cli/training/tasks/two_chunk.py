"""Two-chunk: write one context, predict what follows from its memory tokens alone, with gradient through the write."""

from __future__ import annotations

import torch

from mplus_cli.core.adapters import READ, WRITE
from mplus_cli.training.contexts import write_with_gradient
from mplus_cli.training.tasks.documents import after_writing, prepare
from mplus_cli.training.tasks.reading import Text, behind_tokens, text_losses
from mplus_cli.training.tasks.work import Outcome, Work


class TwoChunk:
    """The task that teaches writing (MemoryLLM section 3.2.1, M+ appendix D).

    The context is written after the newest memory tokens; the target reads `[BOS_l | the K new memory tokens]` and
    neither the rest of memory nor long-term memory. Afterwards the new tokens enter memory, without gradient.

    Which adapter reads: the paper's read adapter, or, as the released code has it, the write adapter, so that it alone
    learns from this task (`tasks.two_chunk_adapter`).
    """

    def run(self, work: Work) -> Outcome:
        prepared = [prepare(work, example) for example in work.batch]
        recompute = work.recipe.loss.gradient_checkpointing
        written = write_with_gradient(work.model, work.memory, [one.contexts[0] for one in prepared], recompute)
        texts = [Text(one.id, one.target, one.labels, row) for row, one in enumerate(prepared)]
        adapter = WRITE if work.recipe.tasks.two_chunk_adapter == "published" else READ
        prefix = behind_tokens(work, texts, [write.tokens for write in written])
        loss = text_losses(work, texts, prefix, adapter).mean()
        spans = []
        with torch.no_grad():
            keys = work.model.memory_keys if work.memory.long_term else None
            for write in written:
                work.memory.append(write.row, write.tokens.detach(), keys)
                spans.append((write.start, work.memory.created_total[write.row]))
        after_writing(work, prepared, spans)
        return Outcome(loss, {"ce": loss.detach()}, sum(one.tokens for one in prepared))
