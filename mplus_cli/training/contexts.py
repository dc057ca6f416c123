"""Writing the contexts of a batch of documents into memory, some of them once more with gradient.

Writes run without autograd: the memory tokens of a whole document would keep a graph through all its chunks. A write
that is to learn is run again from the memory tokens before it, all such writes of a batch side by side, so that
gradient reaches that write and not the chain before it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from mplus_cli.core.adapters import WRITE
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.padding import left_pad
from mplus_cli.training.merging import merged_adapter
from mplus_cli.training.recompute import recomputed_layers

Span = tuple[int, int]  # creation indices [start, end)


@dataclass(frozen=True)
class GradedWrite:
    """One write that keeps its gradient.

    Attributes:
        row: of memory; context: number of the chunk among those written to that row.
        start: creation index of its first memory token.
        tokens: [L, k, d], its memory tokens, differentiable.
        before: [L, p, d], the memory tokens it read, or None.
    """

    row: int
    context: int
    start: int
    tokens: torch.Tensor
    before: torch.Tensor | None


@dataclass(frozen=True)
class Written:
    """What writing did: the span of every context of every row, and the writes with gradient."""

    spans: list[list[Span]]
    graded: list[GradedWrite]

    def document_span(self, row: int) -> Span:
        """Creation indices of all contexts of a row; they were written one after the other."""
        return self.spans[row][0][0], self.spans[row][-1][1]


@dataclass(frozen=True)
class _Pending:
    row: int
    context: int
    start: int
    ids: Sequence[int]
    before: torch.Tensor | None


def write_contexts(
    model: MPlusForCausalLM,
    memory: Memory,
    contexts: Sequence[Sequence[Sequence[int]]],
    graded: Sequence[Collection[int]] | None = None,
    recompute: bool = False,
) -> Written:
    """Write every row's contexts in order.

    Args:
        contexts: per row of memory, token ids of its chunks; rows may have different numbers of them.
        graded: per row, the numbers of the chunks to write with gradient.
        recompute: checkpoint the layers of the writes with gradient.
    """
    spans: list[list[Span]] = [[] for _ in contexts]
    pending: list[_Pending] = []
    with model.adapters.merging(WRITE):
        for number in range(max((len(chunks) for chunks in contexts), default=0)):
            rows = [row for row, chunks in enumerate(contexts) if number < len(chunks)]
            starts = [memory.created_total[row] for row in rows]
            for row, start in zip(rows, starts, strict=True):
                if graded is not None and number in graded[row]:
                    before = memory.context(row) if memory.short_term.fill[row] else None
                    pending.append(_Pending(row, number, start, contexts[row][number], before))
            ids, mask = left_pad([contexts[row][number] for row in rows])
            model.inject(ids, memory, mask, rows=rows)
            for row, start in zip(rows, starts, strict=True):
                spans[row].append((start, memory.created_total[row]))
    return Written(spans, _write_graded(model, pending, recompute))


def write_with_gradient(
    model: MPlusForCausalLM, memory: Memory, chunks: Sequence[Sequence[int]], recompute: bool = False
) -> list[GradedWrite]:
    """One chunk per row of memory with gradient; changes no memory (the two-chunk task)."""
    pending = [
        _Pending(row, 0, memory.created_total[row], ids, memory.context(row) if memory.short_term.fill[row] else None)
        for row, ids in enumerate(chunks)
    ]
    return _write_graded(model, pending, recompute)


def _write_graded(model: MPlusForCausalLM, pending: Sequence[_Pending], recompute: bool) -> list[GradedWrite]:
    """Writes that can share a pass: equally long memory before, and equally long text or at least K tokens of it."""
    size = model.config.memory_tokens_per_write
    groups: dict[tuple[int, int], list[_Pending]] = {}
    for one in pending:
        held = 0 if one.before is None else one.before.shape[1]
        groups.setdefault((held, min(size, len(one.ids))), []).append(one)
    made: list[GradedWrite] = []
    for (held, _), members in groups.items():
        ids, mask = left_pad([one.ids for one in members])
        before = torch.stack([one.before for one in members if one.before is not None]) if held else None
        device = model.device
        with merged_adapter(model, WRITE, unless=recompute), recomputed_layers(model, recompute):
            tokens = model.write(ids.to(device), before, None if mask is None else mask.to(device))
        made += [
            GradedWrite(one.row, one.context, one.start, own, one.before)
            for one, own in zip(members, tokens, strict=True)
        ]
    return sorted(made, key=lambda write: (write.row, write.start))
