"""M+ with its retrieval, or what it retrieves, replaced: the floor, and what the paper's reviewers asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from mplus_cli.core.long_term_memory import LongTermMemory
from mplus_cli.core.memory import Memory
from mplus_cli.core.retrieval_policy import ForeignPrefix, NoisePrefix, RandomPrefix, ZeroPrefix
from mplus_cli.data.chronicle.chronicle import Chronicle
from mplus_cli.data.sources import read_source
from mplus_cli.evaluation.items import Document
from mplus_cli.evaluation.system import memory_seed
from mplus_cli.evaluation.systems.memory_system import MemoryOptions
from mplus_cli.evaluation.systems.mplus import MPlus

DONOR_CHOICE = 4  # donor tokens that the retriever chooses from, in units of what it takes
DONOR_SEED = 7_000_000  # of the generated text: none that a task would ask about


class Random(MPlus):
    """As many long-term tokens as M+ would retrieve, drawn by chance: the floor."""

    name = "random"

    def view(self, memory: Memory) -> Memory:
        """See `MemorySystem.view`."""
        memory.reader = RandomPrefix
        return super().view(memory)


class Zeros(MPlus):
    """The retrieved tokens read as zeros."""

    name = "zeros"

    def view(self, memory: Memory) -> Memory:
        """See `MemorySystem.view`."""
        memory.reader = ZeroPrefix
        return super().view(memory)


class Noise(MPlus):
    """The retrieved tokens read as noise of the same norms."""

    name = "noise"

    def view(self, memory: Memory) -> Memory:
        """See `MemorySystem.view`."""
        memory.reader = NoisePrefix
        return super().view(memory)


@dataclass(frozen=True)
class ForeignOptions(MemoryOptions):
    """Settings of `foreign`.

    Attributes:
        text: file with the other documents; None for a generated chronicle that no task asks about.
    """

    text: str | None = None


class Foreign(MPlus):
    """The retrieved tokens replaced by those that the retriever finds in the memory of another text."""

    name = "foreign"
    options_class = ForeignOptions

    def view(self, memory: Memory) -> Memory:
        """See `MemorySystem.view`."""
        memory.reader = partial(ForeignPrefix, self.donor)
        return super().view(memory)

    @cached_property
    def donor(self) -> LongTermMemory:
        """The other text's long-term memory, several times what one read takes."""
        wanted = min(DONOR_CHOICE * self.config.retrieval_budget, self.config.long_term_capacity)
        per_write = self.config.memory_tokens_per_write
        writes = -(-(wanted + self.config.short_term_size) // per_write) + 1
        text = self._text(writes * (self.options.chunk_size or self.config.chunk_size))
        seed = memory_seed(self.settings.seed, "donor")
        options = self.options
        memory = self.model.new_memory(
            1, seed, "empty", config=self.config, offload=options.offload, values=options.memory_dtype
        )
        with torch.inference_mode():
            for ids in self.chunk_ids(Document(text))[:writes]:
                self.model.inject(torch.tensor([ids]), memory)
        return memory.long_term[0]

    def _text(self, tokens: int) -> str:
        path = getattr(self.options, "text", None)
        if path is not None:
            return read_source(path).text
        return Chronicle.generate(DONOR_SEED + self.settings.seed, min_chars=6 * tokens).text

    def describe(self) -> dict[str, Any]:
        """See `System.describe`."""
        return super().describe() | {
            "donor": getattr(self.options, "text", None) or "generated chronicle",
            "donor_tokens": len(self.donor),
        }
