"""How many memory tokens of a write are still there, counted in the memory itself.

The counts are exact; what is left to chance is which tokens were dropped. Tokens of one write drop independently in
every layer and every memory, and within a layer without replacement, so that their share spreads no more than that of
as many independent draws: Wilson's interval over tokens errs on the wide side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.metrics import wilson

if TYPE_CHECKING:
    from mplus_cli.core.memory import Memory

Span = tuple[int, int]  # creation indices, the end not included


@dataclass(frozen=True)
class Left:
    """What is left of a write, over all layers.

    Attributes:
        short: tokens in short-term memory; held: in short- or long-term memory; made: that the write made.
        writes: of full size since then; None where the drop rule does not apply: short-term memory was not full yet
            when it was written, or it, or what came after it, was not a single full write.
    """

    short: int
    held: int
    made: int
    writes: int | None


def left_of(memory: Memory, row: int, spans: Sequence[Span]) -> list[Left]:
    """What is left of each of the documents that made these tokens. Reads the memory only."""
    config, total = memory.config, memory.created_total[row]
    starts, ends = (torch.tensor([span[side] for span in spans], dtype=torch.int64) for side in (0, 1))
    short, held = torch.zeros_like(starts), torch.zeros_like(starts)  # counts in short- and in long-term memory
    for layer in range(memory.num_layers):
        near = memory.short_term.created[row, layer, : memory.short_term.fill[row]]
        short += _within(near, starts, ends)
        if memory.long_term:
            held += _within(memory.long_term[row].layers[layer].all_created(), starts, ends)
    found, size = [], config.memory_tokens_per_write
    for (start, end), in_short, in_either in zip(spans, short.tolist(), (short + held).tolist(), strict=True):
        applies = end - start == size and end >= config.short_term_size and (total - end) % size == 0
        writes = (total - end) // size if applies else None
        found.append(Left(in_short, in_either, (end - start) * memory.num_layers, writes))
    return found


def curve(found: Iterable[Sequence[int]], rule: DropRule) -> list[dict[str, Any]]:
    """Shares by writes since, over many memories.

    Args:
        found: (writes since, tokens in short-term memory, tokens in either, tokens made) of single writes.

    Returns:
        `writes`, `tokens` counted, `measured` with `low` and `high` (95%), what the rule `expected`, and the share
        `held` in either memory.
    """
    sums: dict[int, list[int]] = {}
    for writes, *counts in found:
        sums[writes] = [a + b for a, b in zip(sums.get(writes, (0, 0, 0)), counts, strict=True)]
    rows = []
    for writes, (short, held, made) in sorted(sums.items()):
        low, high = wilson(short, made)
        measured = {"tokens": made, "measured": short / made, "low": low, "high": high}
        rows.append({"writes": writes, **measured, "expected": rule.survival(writes), "held": held / made})
    return rows


def _within(created: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """How many creation indices lie in each span, int64 [spans]."""
    ordered = created.sort().values
    return torch.searchsorted(ordered, ends) - torch.searchsorted(ordered, starts)
