"""Memory as training reads it: several texts to one memory, and gradient into the writes that keep one.

`GradedPrefix` gives the same keys and values as the core's `MemoryPrefix` (a test compares them), with three additions:
every memory may have several texts, which share its short-term keys and values and search for themselves; memory tokens
of a graded write are replaced by the differentiable ones; and what a retriever loss needs of every layer is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mplus_cli.core.cache import MemoryCache, PrefixLayer
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.short_term_memory import EMPTY
from mplus_cli.training.contexts import GradedWrite, Span
from mplus_cli.training.recompute import recomputed_keys_values
from mplus_cli.training.searching import search


class GradedTokens:
    """Finds, among memory tokens named by row and creation index, those of graded writes, and puts them in."""

    def __init__(self, writes: Sequence[GradedWrite], batch: int) -> None:
        self.empty = not writes
        if self.empty:
            return
        self.flat = torch.cat([write.tokens for write in writes], dim=1)  # [L, S, d]
        most = max(sum(write.row == row for write in writes) for row in range(batch))
        self.first = torch.zeros(batch, most, dtype=torch.int64)
        self.size, self.at = torch.zeros_like(self.first), torch.zeros_like(self.first)
        used, offset = [0] * batch, 0
        for write in writes:
            row, count = write.row, write.tokens.shape[1]
            place = (row, used[row])
            self.first[place], self.size[place], self.at[place] = write.start, count, offset
            used[row] += 1
            offset += count

    def put(self, layer: int, values: torch.Tensor, created: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """values: [T, m, d]; created: int64 [T, m] on the CPU; rows: int64 [T], the memory each belongs to."""
        if self.empty:
            return values
        after = created.unsqueeze(-1) - self.first[rows].unsqueeze(1)
        hit = (created.unsqueeze(-1) != EMPTY) & (after >= 0) & (after < self.size[rows].unsqueeze(1))
        text, place, write = hit.nonzero(as_tuple=True)
        source = self.at[rows][text, write] + after[text, place, write]
        device = values.device
        new = self.flat[layer].to(values.dtype).index_select(0, source.to(device))
        return values.index_put((text.to(device), place.to(device)), new)


@dataclass
class Search:
    """How texts search long-term memory.

    Attributes:
        valid: bool [T, p], which of the first p tokens of the texts to search with; it never is any after them.
        lengths: int64 [L, T], in every layer only so many of the first tokens (random query length), or None.
        wanted: per text a span of creation indices that is found whatever its score, or None.
    """

    valid: torch.Tensor
    lengths: torch.Tensor | None = None
    wanted: list[Span | None] | None = None

    def mask(self, layer: int) -> torch.Tensor:
        """bool [T, p] of one layer."""
        if self.lengths is None:
            return self.valid
        places = torch.arange(self.valid.shape[1], device=self.valid.device)
        return self.valid & (places < self.lengths[layer].to(self.valid.device).unsqueeze(1))


@dataclass
class Seen:
    """What a read pass saw of one layer.

    Attributes:
        text: [T, p, d], the text rows entering the layer, after its input norm; p as in `Search`.
        retrieved: int64 [T, k] on the CPU, creation indices of the long-term tokens read; `EMPTY` where fewer.
    """

    text: torch.Tensor
    retrieved: torch.Tensor


@dataclass
class _Rows:
    """Which text belongs to which memory."""

    owners: torch.Tensor
    texts: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text, row in enumerate(self.owners.tolist()):
            self.texts.setdefault(row, []).append(text)


class GradedPrefix:
    """`[BOS_l | retrieved long-term tokens | short-term tokens]` for texts that read a batch of memories.

    Args:
        memory: what is read, B rows.
        owners: the row of memory that each of T texts reads; every row once, in order, by default.
        graded: writes whose memory tokens are differentiable.
        query: how to search; None searches with whole texts.
        keep_seen: keep `seen` (for a retriever loss), with its graph if `differentiable`.
        recompute: make the keys and values of the prefix again in the backward pass.

    Attributes:
        offset, valid, length: see `core.prefix.Prefix`.
        seen: per layer what the pass saw, if asked for.
    """

    def __init__(
        self,
        model: MPlusForCausalLM,
        memory: Memory,
        owners: Sequence[int] | None = None,
        graded: Sequence[GradedWrite] = (),
        query: Search | None = None,
        keep_seen: bool = False,
        differentiable: bool = False,
        recompute: bool = False,
    ) -> None:
        self.model, self.memory, self.query = model, memory, query
        self.keep_seen, self.differentiable, self.recompute = keep_seen, differentiable, recompute
        self.rows = _Rows(torch.tensor(range(memory.batch_size) if owners is None else list(owners)))
        self.graded = GradedTokens(graded, memory.batch_size)
        self.seen: list[Seen] = []
        counts = torch.tensor([store.expected_count() for store in memory.long_term] or [0] * memory.batch_size)
        fills = torch.tensor(memory.short_term.fill)
        own_counts, own_fills = counts[self.rows.owners], fills[self.rows.owners]
        self.width_short, self.width_long = 1 + int(own_fills.max()), int(own_counts.max())
        self.length = self.width_short + self.width_long
        device = model.device
        self.offset = (1 + own_counts + own_fills).to(device)
        short = torch.arange(self.width_short) <= own_fills[:, None]
        long = torch.arange(self.width_long) < own_counts[:, None]
        valid = torch.cat([short, long], dim=1)
        self.valid = None if bool(valid.all()) else valid.to(device)
        self.cos, self.sin = model.position_tables(torch.arange(self.length, device=device)[None])
        self.created = memory.short_term.created[:, :, : self.width_short - 1]
        # Empty slots come last in creation order, so their ranks, which nothing sees, stay below the width.
        ranks = self.created.argsort(-1).argsort(-1)
        self.positions = (1 + counts.clamp(max=self.width_long))[:, None, None] + ranks

    def attach(self, cache: MemoryCache) -> None:
        """Give an empty cache its layers."""
        cache.layers = [PrefixLayer() for _ in self.model.model.layers]

    def load(self, index: int, hidden: torch.Tensor, cache: MemoryCache) -> None:
        """Put layer `index`'s prefix into `cache`. hidden: [T, n, d], the text rows entering that layer."""
        parts = [self._short_term(index)]
        if self.width_long or self.keep_seen:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
                searching = hidden if self.query is None else hidden[:, : self.query.valid.shape[1]]
                text = self.model.model.layers[index].input_layernorm(searching)
            retrieved = torch.full((len(self.rows.owners), 0), EMPTY)
            if self.width_long:
                keys_values, retrieved = self._long_term(index, text)
                parts.append(keys_values)
            if self.keep_seen:
                self.seen.append(Seen(text, retrieved))
        layer: Any = cache.layers[index]
        layer.set_prefix(*(torch.cat(part, dim=2) for part in zip(*parts, strict=True)))

    def _keys_values(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if self.recompute and torch.is_grad_enabled():
            return recomputed_keys_values(self.model, *arguments)
        return self.model.keys_values(*arguments)

    def short_term_rows(self, index: int) -> torch.Tensor:
        """Short-term memory tokens of all memories, [B, width, d], graded ones differentiable."""
        values = self.memory.short_term.values[:, index, : self.width_short - 1]
        return self.graded.put(index, values, self.created[:, index], torch.arange(len(values)))

    def _short_term(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, device = self.short_term_rows(index), self.cos.device
        bos = self.model.bos_embedding[index].expand(len(rows), 1, -1)
        positions = torch.cat([torch.zeros(len(rows), 1, dtype=torch.int64), self.positions[:, index]], dim=1)
        positions = positions.clamp(max=self.length - 1).to(device, non_blocking=True)
        pair = self._keys_values(index, torch.cat([bos, rows], dim=1), self.cos[0][positions], self.sin[0][positions])
        owners = self.rows.owners.to(device)
        if len(owners) == len(rows) and bool((self.rows.owners == torch.arange(len(rows))).all()):
            return pair
        return pair[0].index_select(0, owners), pair[1].index_select(0, owners)

    def _long_term(self, index: int, text: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Keys and values of what every text finds, and its creation indices [T, width]."""
        count = len(self.rows.owners)
        values = text.new_zeros(count, self.width_long, text.shape[-1])
        created = torch.full((count, self.width_long), EMPTY)
        with torch.no_grad():
            queries = self.model.retrievers[index].queries(text)
            valid = text.new_ones(text.shape[:2], dtype=torch.bool) if self.query is None else self.query.mask(index)
            for row, texts in self.rows.texts.items():
                store = self.memory.long_term[row]
                if not len(store):
                    continue
                wanted = None
                if self.query is not None and self.query.wanted is not None:
                    wanted = [self.query.wanted[i] for i in texts]
                found, own = search(self.model, store, index, queries[texts], valid[texts], wanted)
                values[texts, : own.shape[1]], created[texts, : own.shape[1]] = found.to(values), own
        values = self.graded.put(index, values, created, self.rows.owners)
        tables = self.cos[:, 1 : 1 + self.width_long], self.sin[:, 1 : 1 + self.width_long]
        return self._keys_values(index, values, *tables), created
