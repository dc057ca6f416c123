"""What a pass attends to before its own tokens: `[BOS_l | memory]`, made layer by layer as keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.nn.functional as F

from mplus_cli.core.backbones import rotate
from mplus_cli.core.cache import BufferLayer, MemoryCache, PrefixLayer
from mplus_cli.core.long_term_memory import LongTermMemory, Retrieval, Retrieved
from mplus_cli.core.memory import Memory
from mplus_cli.core.retriever import tiled_scores
from mplus_cli.core.streaming import Ahead, HostLink

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM

PROJECTED_AT_ONCE = 128 << 20  # bytes that memory tokens take while keys and values are made of them, about


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
        count: P, where a subclass gives the tokens layer by layer (`rows`).
    """

    def __init__(
        self,
        model: MPlusForCausalLM,
        batch: int,
        tokens: torch.Tensor | None,
        valid: torch.Tensor | None = None,
        count: int = 0,
    ) -> None:
        self.model, self.batch, self.tokens = model, batch, tokens
        device = model.device
        self.count = count = count if tokens is None else tokens.shape[2]
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

    def rows(self, index: int) -> torch.Tensor | None:
        """Memory tokens of a layer, [B, P, d], or None."""
        return None if self.tokens is None else self.tokens[:, index]

    def load(self, index: int, hidden: torch.Tensor, cache: MemoryCache) -> None:
        rows = self.model.bos_embedding[index].expand(self.batch, 1, -1).to(hidden.device)
        if (tokens := self.rows(index)) is not None:
            rows = torch.cat([rows, tokens.to(rows)], dim=1)
        if self.tables[0].device != hidden.device:
            self.tables = self.tables[0].to(hidden.device), self.tables[1].to(hidden.device)
        layer: Any = cache.layers[index]
        layer.set_prefix(*self.model.keys_values(index, rows, *self.tables))


class MemoryPrefix:
    """`[BOS_l | retrieved long-term tokens, oldest first | short-term tokens]` of a `Memory` (M+ section 3.2.3).

    Keys and values lie in one buffer per layer as [BOS | short-term | long-term | text]. Attention does not care about
    that order, since positions are in the rotated keys, and this way the short-term part stays where it is from
    question to question while memory is unchanged.

    Nothing that can be made in parts lies on the device whole: short-term tokens are projected some rows at a time,
    straight into the buffer, and what is offloaded is there for one layer and on its way for the next.

    Attributes:
        counts: long-term entries of each row; spans: positions that they take up.
        keeps_rows: whether what is read at a position of the store is what the store has there, so that its keys and
            values can be kept for the next question.
    """

    keeps_rows = True

    def __init__(self, model: MPlusForCausalLM, memory: Memory) -> None:
        self.model, self.memory = model, memory
        device, batch = model.device, memory.batch_size
        self.links = [link for span in model.spans for link in [HostLink(span.device)] * len(span)]  # of each layer
        self.counts = [self.count(store) for store in memory.long_term] or [0] * batch
        self.spans = [self.span(count) for count in self.counts]
        self.fills = list(memory.short_term.fill)
        self.width_short, self.width_long = 1 + max(self.fills), max(self.counts)
        self.length = self.width_short + self.width_long
        self.offset = torch.tensor([1 + f + s for f, s in zip(self.fills, self.spans, strict=True)], device=device)
        self.valid = self._valid(device)
        self.reuse = not torch.is_grad_enabled()  # in-place buffers and autograd do not go together
        self.stale = True
        self._here: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}  # the cache's tables, by device
        self._offloaded = Ahead(self.links, self._host_values) if self._away(memory.short_term.parts[0]) else None
        self._keys = [
            Ahead(self.links, self._host_keys(store)) if self._away(store.layers[0].keys) else None
            for store in memory.long_term
        ]
        memory.last_retrieval = []

    def _away(self, held: Any) -> bool:
        """Whether something of the first layer is kept on another device than where the model reads it."""
        return held.device != self.model.device

    def _host_values(self, index: int) -> list[torch.Tensor]:
        """Short-term values of a layer where they are kept, [width - 1, d] per row of the memory."""
        return list(self.memory.short_term.layer(index)[:, : self.width_short - 1])

    def _host_keys(self, store: LongTermMemory) -> Any:
        return lambda index: list(store.layers[index].keys.views())

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
        made_by = (torch.is_inference_mode_enabled(), *self.model.key_value_version())
        source = (self.memory.version, self.length, tuple(self.spans), *made_by)
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
        self.memory.retrieved_rows.use(made_by)
        self._make_tables(cache)

    def _make_tables(self, cache: MemoryCache) -> None:
        if cache.tables is None:
            cache.tables = self.model.position_tables(torch.arange(self.length, device=self.model.device)[None])
        self.cos, self.sin = cache.tables

    def _use_tables(self, device: torch.device, cache: MemoryCache) -> None:
        """Take up the tables on the device of a layer."""
        assert cache.tables is not None  # made by `attach`
        if self.cos.device != device:
            if device not in self._here:
                cos, sin = cache.tables
                self._here[device] = cos.to(device), sin.to(device)
            self.cos, self.sin = self._here[device]

    def load(self, index: int, hidden: torch.Tensor, cache: MemoryCache) -> None:
        self._use_tables(hidden.device, cache)
        # What is found is asked for last: it travels to the host while short-term memory is projected.
        search = self.retrieve(index, hidden, cache.text_valid) if self.width_long else []
        layer: Any = cache.layers[index]
        if not self.reuse:
            parts = list(self._short_term(index))
            if self.width_long:
                parts.append(self._long_term(index, search))
            layer.set_prefix(*(torch.cat(part, dim=2) for part in zip(*parts, strict=True)))
            return
        start = 0 if self.stale else self.width_short
        for keys, values in self._short_term(index) if self.stale else ():
            if start == 0:
                layer.reserve(keys, self.length, max(cache.text_length, hidden.shape[1] + 1))
            layer.write_prefix(start, keys, values)
            start += keys.shape[2]
        if self.width_long:
            layer.write_prefix(start, *self._long_term(index, search))

    def _valid(self, device: torch.device) -> torch.Tensor | None:
        if len(set(self.fills)) == 1 and len(set(self.counts)) == 1:
            return None
        short = torch.arange(self.width_short)[None] <= torch.tensor(self.fills)[:, None]
        long = torch.arange(self.width_long)[None] < torch.tensor(self.counts)[:, None]
        return torch.cat([short, long], dim=1).to(device)

    def _short_term(self, index: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of BOS and short-term memory, a stretch of rows at a time."""
        short, batch = self.memory.short_term, self.memory.batch_size
        positions = self._short_positions(index)
        bos = self.model.bos_embedding[index].expand(batch, 1, -1).to(self.cos.device)
        held = short.layer(index) if self._offloaded is None else self._offloaded.take(index)
        step = max(1, PROJECTED_AT_ONCE // (batch * _projection_bytes(self.model)))
        for begin in range(0, self.width_short, step):
            end = min(begin + step, self.width_short)
            rows = _slice(held, max(begin - 1, 0), end - 1)
            rows = torch.cat([bos, rows], dim=1) if begin == 0 else rows
            here = positions[:, begin:end]
            yield self.model.keys_values(index, rows, self.cos[0][here], self.sin[0][here])

    def _short_positions(self, index: int) -> torch.Tensor:
        """Positions of BOS and of every slot of short-term memory in a layer, int64 [B, width_short], by rank."""
        created = self.memory.short_term.created[:, index, : self.width_short - 1].to(self.cos.device)
        # Empty slots come last; nothing sees them, and their positions only have to exist.
        order, places = created.argsort(-1), torch.arange(created.shape[1], device=created.device)
        ranks = torch.empty_like(order).scatter_(1, order, places.expand_as(order))
        shifted = ranks + 1 + torch.tensor(self.spans, device=created.device)[:, None]
        return F.pad(shifted, (1, 0)).clamp(max=self.length - 1)

    def _long_term(self, index: int, search: Sequence[Retrieval | Retrieved]) -> tuple[torch.Tensor, torch.Tensor]:
        found = [one.result() for one in search]
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
        return store.fetch(index, positions, self.links[index])

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

    def retrieve(
        self, index: int, hidden: torch.Tensor, text_valid: torch.Tensor | None
    ) -> Sequence[Retrieval | Retrieved]:
        """Search each row's store with that row's text, without waiting. hidden: [B, n, d]; text_valid: bool [B, n]."""
        retriever, found = self.model.retrievers[index], []
        queries = self.queries(index, hidden, text_valid)
        for store, own, ahead in zip(self.memory.long_term, queries, self._keys, strict=True):
            keys = store.layers[index].keys.views() if ahead is None else ahead.take(index)
            found.append(store.search(index, tiled_scores(retriever, own, keys)))
        return found

    def queries(self, index: int, hidden: torch.Tensor, text_valid: torch.Tensor | None) -> list[torch.Tensor]:
        """Retrieval queries of the text of each row, without its padding, [n_b, r] per row."""
        queries = self.model.retrievers[index].queries(self.model.model.layers[index].input_layernorm(hidden))
        if text_valid is None:
            text_valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if index == 0:
            self._padded = (~text_valid.all(1)).tolist()
        return [q[text_valid[row].to(q.device)] if self._padded[row] else q for row, q in enumerate(queries)]


def _slice(held: torch.Tensor | Sequence[torch.Tensor], begin: int, end: int) -> torch.Tensor:
    """Rows begin to end of [B, N, d], or of [N, d] per row of a batch."""
    if isinstance(held, torch.Tensor):
        return held[:, begin:end]
    return torch.stack([rows[begin:end] for rows in held]) if len(held) > 1 else held[0][None, begin:end]


def _projection_bytes(model: MPlusForCausalLM) -> int:
    """Bytes that one memory token takes while it becomes a key and a value: itself twice, its norm in float32 twice."""
    text, size = model.config.text_config, model.dtype.itemsize
    heads = (text.num_key_value_heads or text.num_attention_heads) * model.model.layers[0].self_attn.head_dim
    return 2 * text.hidden_size * (size + 4) + 4 * heads * size
