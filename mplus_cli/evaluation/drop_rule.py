"""What random dropping leaves of a write in short-term memory: the theoretical curve of MemoryLLM (section 4.4).

A write of K memory tokens drops K of the N that are there: of what an earlier write left, a share of (N-K)/N stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DropRule:
    """Short-term memory of N = `size` tokens, K = `write` of them new with every write."""

    write: int
    size: int

    @classmethod
    def of(cls, config: Any) -> DropRule:
        """That of a model's configuration, as an object or as the mapping in run.json."""
        if isinstance(config, Mapping):
            return cls(config["memory_tokens_per_write"], config["short_term_size"])
        return cls(config.memory_tokens_per_write, config.short_term_size)

    def survival(self, writes: float) -> float:
        """Share of a write's memory tokens that is still in short-term memory after so many more writes."""
        return max(0.0, 1 - self.write / self.size) ** writes

    @property
    def half_life(self) -> float:
        """Writes after which half of a write is left; 0 where the next write takes everything."""
        kept = 1 - self.write / self.size
        return math.log(0.5) / math.log(kept) if kept > 0 else 0.0

    def accuracy(self, first: float, border: float, writes: float) -> float:
        """The theoretical accuracy: what `first` is above the border (closed-book) shrinks as the memory tokens do.

        a_t - a_border = (a_1 - a_border) * ((N-K)/N)^(t-1), with t - 1 the writes in between.
        """
        return border + (first - border) * self.survival(writes)
