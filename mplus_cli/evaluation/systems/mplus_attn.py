"""M+-Attn: long-term memory searched by attention scores in place of the retriever (M+ section 4.3, figure 5).

Every head of every token, of the prompt and of the answer, attends to its own best K_theta long-term tokens. All of
long-term memory is kept as keys and values for that, as the paper describes it; how that variant numbers positions it
does not say (see `PerHeadPrefix` for what is done here).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mplus_cli.core.memory import Memory
from mplus_cli.core.retrieval_policy import PerHeadPrefix, per_head_search
from mplus_cli.evaluation.systems.mplus import MPlus


class MPlusAttn(MPlus):
    """Search per head and per token, by attention itself."""

    name = "mplus-attn"

    def view(self, memory: Memory) -> Memory:
        """See `MemorySystem.view`."""
        memory.reader = PerHeadPrefix
        return super().view(memory)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See `MemorySystem.reading`."""
        with super().reading(), per_head_search(self.model):
            yield
