"""Which memory tokens came from where: the writes of an excerpt, and what is left of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

_PLACE_PARTS = 8


@dataclass(frozen=True)
class Write:
    """One chunk and the memory tokens it made.

    Attributes:
        ids: tokens of the chunk.
        start, made: creation index of its first memory token, and how many there are.
    """

    ids: Sequence[int]
    start: int
    made: int

    def places(self, created: torch.Tensor) -> torch.Tensor:
        """Places in the chunk that memory tokens stand for; negative for those that a short chunk rewrote."""
        return created - self.start + len(self.ids) - self.made


def writes_of(chunks: Sequence[Sequence[int]], tokens_per_write: int, held: int = 0) -> list[Write]:
    """The writes of chunks in order. A chunk with fewer than K tokens rewrites what the one before made.

    Args:
        held: memory tokens before the first write.
    """
    made = []
    for chunk in chunks:
        made.append(min(tokens_per_write, min(tokens_per_write, held) + len(chunk)))
        held += made[-1]
    starts = [0, *accumulate(made)]
    return [Write(chunk, start, count) for chunk, start, count in zip(chunks, starts, made, strict=False)]


def spread(count: int, total: int) -> list[int]:
    """At most `count` of the numbers below `total`, evenly spread, the first and the last among them."""
    if count >= total:
        return list(range(total))
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})


def survival(writes: Sequence[Write], created: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What is left of every write in each store of a layer, and of every eighth of the places within a write.

    Returns:
        `short`, `long`: shares by write, oldest first; `short_by_place`, `long_by_place`: shares by eighths of a write,
        over all writes.
    """
    found: dict[str, Any] = {}
    for store, held in created.items():
        ages = [held[(held >= write.start) & (held < write.start + write.made)] for write in writes]
        found[store] = [round(len(kept) / write.made, 4) for kept, write in zip(ages, writes, strict=True)]
        counts, totals = torch.zeros(_PLACE_PARTS), torch.zeros(_PLACE_PARTS)
        for kept, write in zip(ages, writes, strict=True):
            for numbers, total in ((kept - write.start, counts), (torch.arange(write.made), totals)):
                total += torch.bincount(numbers * _PLACE_PARTS // write.made, minlength=_PLACE_PARTS)
        found[f"{store}_by_place"] = [round(value, 4) for value in (counts / totals.clamp(min=1)).tolist()]
    return found
