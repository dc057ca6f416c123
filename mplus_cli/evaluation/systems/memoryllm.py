"""MemoryLLM: short-term memory alone; what is dropped is gone (MemoryLLM, arXiv 2402.04624)."""

from __future__ import annotations

from dataclasses import dataclass

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.evaluation.systems.memory_system import MemoryOptions, MemorySystem


@dataclass(frozen=True)
class MemoryLLMOptions(MemoryOptions):
    """The settings of memory systems; those of long-term memory are refused."""

    long_term_capacity: None = None
    retrieval_budget: None = None
    retriever_score: None = None


class MemoryLLM(MemorySystem):
    """The same weights without long-term memory, or a checkpoint that never had one."""

    name = "memoryllm"
    options_class = MemoryLLMOptions

    def memory_config(self, config: MPlusConfig) -> MPlusConfig:
        """See `MemorySystem.memory_config`."""
        return super().memory_config(config).varied(long_term_capacity=0)
