"""M+: short-term memory, and long-term memory searched by the co-trained retriever (M+ section 3)."""

from __future__ import annotations

from mplus_cli.evaluation.systems.memory_system import MemorySystem


class MPlus(MemorySystem):
    """The system of the paper. Its sizes, its score and its short-term memory can be varied (`MemoryOptions`)."""

    name = "mplus"
    needs_long_term = True
