"""What a pass attends to before its own tokens: `[BOS_l | memory]`, made layer by layer as keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.nn.functional as F

from mplus_cli.core.backbones import rotate
from mplus_cli.core.cache import BufferLayer, MemoryCache, PrefixLayer
from mplus_cli.core.long_term_memory import LongTermMemory, Retrieved
from mplus_cli.core.memory import Memory
from mplus_cli.core.retriever import tiled_scores

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM


class Prefix(Protocol):
    """A source of prefix keys and values for `MPlusForCausalLM.run_layers`.

    Attributes:
        offset: int64 [B], position of the first text token of each row.
        valid: bool [B, P], which prefix entries exist, or None when all do.
        length: P.
    """

    offset: torch.Tensor
    valid: torch.Tensor | None
    length: int

    def attach(self, cache: MemoryCache) -> None:
        """Give an empty cache its layers."""
        ...

    def load(self, index: int, hidden: torch.Tensor, cache: MemoryCache) -> None:
        """Put layer `index`'s prefix into `cache`. hidden: [B, n, d], the text rows entering that layer."""
        ...


class TokenPrefix:
    """`[BOS_l | given memory tokens]`: the write pass, and differentiable reads over explicit memory.

    Args:
        tokens: [B, L, P, d], oldest first, or None for BOS alone.
        valid: bool [B, P], which tokens exist, right-aligned; None when all do.
    """

    def __init__(
        self, model: MPlusForCausalLM, batch: int, tokens: torch.Tensor | None, valid: torch.Tensor | None = None
    ) -> None:
        self.model, self.batch, self.tokens = model, batch, tokens
        device = model.device
        count = 0 if tokens is None else tokens.shape[2]
        if valid is None:
            positions = torch.arange(1 + count, device=device).unsqueeze(0)
            self.valid = None
        else:
            self.valid = torch.cat([valid.new_ones(batch, 1), valid], dim=1)
            positions = self.valid.cumsum(1) - 1
        self.length = 1 + count
        self.offset = (positions[:, -1] + 1).expand(batch)
        self.tables = model.position_tables(positions.clamp(min=0))

    def attach(self, cache: MemoryCache) -> None:
        cache.layers = [PrefixLayer() for _ in self.model.model.layers]

    def load(self, index: int, hidden: torch.Tensor, cache: MemoryCache) -> None:
        rows = self.model.bos_embedding[index].expand(self.batch, 1, -1)
        if self.tokens is not None:
            rows = torch.cat([rows, self.tokens[:, index].to(rows.dtype)], dim=1)
        layer: Any = cache.layers[index]
        layer.set_prefix(*self.model.keys_values(index, rows, *self.tables))


class MemoryPrefix:
    """`[BOS_l | retrieved long-term tokens, oldest first | short-term tokens]` of a `Memory` (M+ section 3.2.3).

    Keys and values lie in one buffer per layer as [BOS | short-term | long-term | text]. Attention does not care about
    that order, since positions are in the rotated keys, and this way the short-term part stays where it is from
    question to question while memory is unchanged.

    Attributes:
        counts: long-term entries of each row; spans: positions that they take up.
        keeps_rows: whether what is read at a position of the store is what the store has there, so that its keys and
            values can be kept for the next question.
    """

    keeps_rows = True

    def __init__(self, model: MPlusForCausalLM, memory: Memory) -> None:
        self.model, self.memory = model, memory
        device, batch = model.device, memory.batch_size
        self.counts = [self.count(store) for store in memory.long_term] or [0] * batch
        self.spans = [self.span(count) for count in self.counts]
        self.fills = list(memory.short_term.fill)
        self.width_short, self.width_long = 1 + max(self.fills), max(self.counts)
        self.length = self.width_short + self.width_long
        self.offset = torch.tensor([1 + f + s for f, s in zip(self.fills, self.spans, strict=True)], device=device)
        self.valid = self._valid(device)
        self.reuse = not torch.is_grad_enabled()  # in-place buffers and autograd do not go together
        self.stale = True
        memory.last_retrieval = []

    def count(self, store: LongTermMemory) -> int:
        """Entries that this read takes from a store."""
        return store.expected_count()

    def span(self, count: int) -> int:
        """Positions that `count` entries take up."""
        return count

    def attach(self, cache: MemoryCache) -> None:
        """Take over the memory's buffers if they are still true; the cache that had them becomes void."""
        before = self.memory.read_cache
        # Buffers made in inference mode cannot be written outside of it.
        source = (self.memory.version, torch.is_inference_mode_enabled(), *self.model.key_value_version())
        if not self.reuse:
            cache.layers = [PrefixLayer() for _ in self.model.model.layers]
            self._make_tables(cache)
            return
        cache.layers = [BufferLayer() for _ in self.model.model.layers]
        if before is not None:
            before.superseded = True
            self.stale = not before.complete or before.source != source
            if not self.stale:
                cache.layers, cache.tables = before.layers, before.tables
        for layer in cast(list[BufferLayer], cache.layers):
            layer.begin_text()
        cache.source, self.memory.read_cache = source, cache
        self.memory.retrieved_rows.use(source[1:])
        self._make_tables(cache)

    def _make_tables(self, cache: MemoryCache) -> None:
        if cache.tables is None:
            cache.tables = self.model.position_tables(torch.arange(self.length, device=self.model.device)[None])
        self.cos, self.sin = cache.tables

    def load(self, index: int, hidden: torch.Tensor, cache: MemoryCache) -> None:
        layer: Any = cache.layers[index]
        parts = [self._short_term(index)] if self.stale else []
        if self.width_long:
            parts.append(self._long_term(index, hidden, cache))
        if not self.reuse:
            layer.set_prefix(*(torch.cat(part, dim=2) for part in zip(*parts, strict=True)))
            return
        if self.stale:
            layer.reserve(parts[0][0], self.length)
        start = 0 if self.stale else self.width_short
        for keys, values in parts:
            layer.write_prefix(start, keys, values)
            start += keys.shape[2]

    def _valid(self, device: torch.device) -> torch.Tensor | None:
        if len(set(self.fills)) == 1 and len(set(self.counts)) == 1:
            return None
        short = torch.arange(self.width_short)[None] <= torch.tensor(self.fills)[:, None]
        long = torch.arange(self.width_long)[None] < torch.tensor(self.counts)[:, None]
        return torch.cat([short, long], dim=1).to(device)

    def _short_term(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        short, batch = self.memory.short_term, self.memory.batch_size
        positions = torch.zeros(batch, self.width_short, dtype=torch.int64)
        for row, (fill, span) in enumerate(zip(self.fills, self.spans, strict=True)):
            positions[row, 1 : 1 + fill] = 1 + span + short.ranks(row, index)
        positions = positions.to(self.cos.device, non_blocking=True)
        bos = self.model.bos_embedding[index].expand(batch, 1, -1)
        values = short.values[:, index, : self.width_short - 1].to(bos.device, non_blocking=True)
        rows = torch.cat([bos, values], dim=1)
        return self.model.keys_values(index, rows, self.cos[0][positions], self.sin[0][positions])

    def _long_term(self, index: int, hidden: torch.Tensor, cache: MemoryCache) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.retrieve(index, hidden, cache.text_valid)
        self.memory.last_retrieval.append(found)
        if self.reuse and self.keeps_rows:
            projected = self._padded_stack([self._projected(index, row, r.positions) for row, r in enumerate(found)])
            keys, values = projected.unflatten(2, (2, -1, self.cos.shape[-1])).unbind(2)
        else:
            keys, values = self.model.project_memory(index, self.retrieved_tokens(index, found))
        return rotate(keys.transpose(1, 2), *self.long_tables()), values.transpose(1, 2)

    def long_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of the long-term entries, two [B or 1, width_long, D]."""
        return self.cos[:, 1 : 1 + self.width_long], self.sin[:, 1 : 1 + self.width_long]

    def retrieved_tokens(self, index: int, found: list[Retrieved]) -> torch.Tensor:
        """The retrieved memory tokens of layer `index`, [B, width_long, d], zero where a row has fewer."""
        return self._padded_stack([self._fetch(index, row, r.positions) for row, r in enumerate(found)])

    def _fetch(self, index: int, row: int, positions: torch.Tensor) -> torch.Tensor:
        store = self.memory.long_term[row].layers[index]
        return store.fetch(index, positions, self.cos.device)

    def _projected(self, index: int, row: int, positions: torch.Tensor) -> torch.Tensor:
        """Unrotated keys and values of one row, side by side, [k, 2 * H_kv * D]."""

        def project(new: torch.Tensor) -> torch.Tensor:
            pair = self.model.project_memory(index, self._fetch(index, row, new))
            return torch.stack(pair, dim=1).flatten(1)

        return self.memory.retrieved_rows.load(index, row, positions, project)

    def _padded_stack(self, rows: list[torch.Tensor]) -> torch.Tensor:
        """[k_b, w] per row -> [B, width_long, w]."""
        if all(len(row) == self.width_long for row in rows):
            return torch.stack(rows) if len(rows) > 1 else rows[0][None]
        return torch.stack([F.pad(row, (0, 0, 0, self.width_long - len(row))) for row in rows])

    def retrieve(self, index: int, hidden: torch.Tensor, text_valid: torch.Tensor | None) -> list[Retrieved]:
        """Search each row's store with that row's text. hidden: [B, n, d]; text_valid: bool [B, n]."""
        retriever, found = self.model.retrievers[index], []
        queries = self.queries(index, hidden, text_valid)
        for store, own in zip(self.memory.long_term, queries, strict=True):
            found.append(store.retrieve(index, tiled_scores(retriever, own, store.layers[index].keys.views())))
        return found

    def queries(self, index: int, hidden: torch.Tensor, text_valid: torch.Tensor | None) -> list[torch.Tensor]:
        """Retrieval queries of the text of each row, without its padding, [n_b, r] per row."""
        queries = self.model.retrievers[index].queries(self.model.model.layers[index].input_layernorm(hidden))
        if text_valid is None:
            text_valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if index == 0:
            self._padded = (~text_valid.all(1)).tolist()
        return [q[text_valid[row]] if self._padded[row] else q for row, q in enumerate(queries)]
