"""Other ways to read long-term memory, for comparisons: give one of these to `Memory.reader` of a memory to be read.

The floor (`RandomPrefix`), what the retrieved tokens are worth (`ZeroPrefix`, `NoisePrefix`, `ForeignPrefix`), and
search by attention scores, per head and per token (`PerHeadPrefix`, the paper's M+-Attn). All are pure functions of the
memory and the prompt, so that neither batch size nor order changes what is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface

from mplus_cli.core import attention
from mplus_cli.core.cache import MemoryCache
from mplus_cli.core.long_term_memory import LayerStore, LongTermMemory, Retrieved
from mplus_cli.core.memory import Memory
from mplus_cli.core.prefix import MemoryPrefix
from mplus_cli.core.retriever import tiled_scores

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM

PER_HEAD = "mplus_per_head_search"
WEIGHTS_AT_ONCE = 1 << 26  # attention weights, over batch, heads and queries, that a per-head search forms at a time


def draw(memory: Memory, row: int, layer: int) -> torch.Generator:
    """Random numbers for one layer of one row, made of the row's seed and age alone."""
    seed = (memory.seeds[row] * 1_000_003 + memory.created_total[row]) * 1_009 + layer
    return torch.Generator().manual_seed(seed % (1 << 63))


class RandomPrefix(MemoryPrefix):
    """Every long-term token gets a random score; nothing of the prompt counts."""

    def retrieve(self, index: int, hidden: torch.Tensor, text_valid: torch.Tensor | None) -> list[Retrieved]:
        """See `MemoryPrefix.retrieve`."""
        found = []
        for row, memory in enumerate(self.memory.long_term):
            scores = torch.rand(len(memory.layers[index]), generator=draw(self.memory, row, index))
            found.append(memory.retrieve(index, scores))
        return found


class ZeroPrefix(MemoryPrefix):
    """Retrieval as ever, but what is read in its place is rows of zeros."""

    keeps_rows = False

    def retrieved_tokens(self, index: int, found: list[Retrieved]) -> torch.Tensor:
        """See `MemoryPrefix.retrieved_tokens`."""
        return torch.zeros_like(super().retrieved_tokens(index, found))


class NoisePrefix(MemoryPrefix):
    """Retrieval as ever, but what is read in its place is Gaussian noise with the norm of each token."""

    keeps_rows = False

    def retrieved_tokens(self, index: int, found: list[Retrieved]) -> torch.Tensor:
        """See `MemoryPrefix.retrieved_tokens`."""
        rows = super().retrieved_tokens(index, found)
        shapes = [(len(r.positions), rows.shape[-1]) for r in found]
        drawn = [torch.randn(shape, generator=draw(self.memory, row, index)) for row, shape in enumerate(shapes)]
        noise = self._padded_stack(drawn).to(rows)
        return noise * (rows.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True).clamp(min=1e-6))


class ForeignPrefix(MemoryPrefix):
    """Reads from `donor`, a store of other documents, as many tokens as the memory itself would give.

    They are the donor's best by the same retriever and the same prompt: the right form of text, and not its content.
    """

    keeps_rows = False

    def __init__(self, donor: LongTermMemory, model: MPlusForCausalLM, memory: Memory) -> None:
        self.donor = donor
        super().__init__(model, memory)

    def count(self, store: LongTermMemory) -> int:
        """See `MemoryPrefix.count`."""
        return min(store.expected_count(), len(self.donor))

    def retrieve(self, index: int, hidden: torch.Tensor, text_valid: torch.Tensor | None) -> list[Retrieved]:
        """See `MemoryPrefix.retrieve`; creation indices are the donor's."""
        store, retriever, found = self.donor.layers[index], self.model.retrievers[index], []
        for queries, count in zip(self.queries(index, hidden, text_valid), self.counts, strict=True):
            found.append(best(store, tiled_scores(retriever, queries, store.keys.views()), count))
        return found

    def _fetch(self, index: int, row: int, positions: torch.Tensor) -> torch.Tensor:
        return self.donor.layers[index].fetch(index, positions, self.links[index])


def best(store: LayerStore, scores: torch.Tensor, count: int) -> Retrieved:
    """The `count` tokens of a store with the highest scores, float32 [m], oldest first."""
    live = scores.topk(count, sorted=False).indices.cpu()
    created, order = store.created.gather(live + store.created.start).sort(stable=True)
    return Retrieved(created, scores.cpu()[live[order]], (live + store.created.start)[order])


class PerHeadPrefix(MemoryPrefix):
    """All of long-term memory as keys and values; every head of every token attends to its own best K_theta of them.

    The positions 1 to K_theta are shared out over the store in order of age, so that a key does not depend on who asks
    and distances stay those the model knows. Reads under `per_head_search` only.
    """

    keeps_rows = False  # there may be many

    def __init__(self, model: MPlusForCausalLM, memory: Memory) -> None:
        super().__init__(model, memory)
        ranks = torch.arange(self.width_long)[None]
        counts = torch.tensor(self.counts)[:, None].clamp(min=1)
        spans = torch.tensor(self.spans)[:, None]
        self.places = (1 + ranks.clamp(max=counts - 1) * spans // counts).to(model.device)

    def count(self, store: LongTermMemory) -> int:
        """See `MemoryPrefix.count`."""
        return len(store)

    def span(self, count: int) -> int:
        """See `MemoryPrefix.span`."""
        return min(count, self.memory.config.retrieval_budget)

    def long_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `MemoryPrefix.long_tables`."""
        self.places = self.places.to(self.cos.device)
        return self.cos[0][self.places], self.sin[0][self.places]

    def load(self, index: int, hidden: torch.Tensor, cache: MemoryCache) -> None:
        """See `Prefix.load`."""
        super().load(index, hidden, cache)
        searched = (self.width_short, self.length, self.memory.config.retrieval_budget)
        self.model.model.layers[index].self_attn.searched = searched

    def retrieve(self, index: int, hidden: torch.Tensor, text_valid: torch.Tensor | None) -> list[Retrieved]:
        """Everything, oldest first: the choice is made inside attention."""
        found = []
        for memory, count in zip(self.memory.long_term, self.counts, strict=True):
            store = memory.layers[index]
            created, order = store.all_created()[-count:].sort(stable=True)
            positions = order + store.created.end - count
            found.append(Retrieved(created, torch.zeros(count), positions))
        return found


@contextmanager
def per_head_search(model: MPlusForCausalLM) -> Iterator[None]:
    """Reads inside the block search long-term memory in attention, as `PerHeadPrefix` prepares it."""
    config, before = model.model.config, model.model.config._attn_implementation
    config._attn_implementation = PER_HEAD
    try:
        yield
    finally:
        config._attn_implementation = before
        for layer in model.model.layers:
            vars(layer.self_attn).pop("searched", None)


def per_head_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention in which each query sees, of the searched keys, only those with its K_theta highest scores.

    Shapes as in `attention.prefix_attention`; `module.searched` is (first, end, K_theta) of the searched keys.
    """
    searched = getattr(module, "searched", None)
    batch, heads, length, width = query.shape
    total, groups = key.shape[2], heads // key.shape[1]
    if searched is None or searched[1] - searched[0] <= searched[2]:
        return attention.prefix_attention(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    first, end, budget = searched
    if attention_mask is None:
        attention_mask = attention.causal_mask(length, total, query.dtype, query.device)
    elif attention_mask.dim() == 2:  # what flash attention takes
        attention_mask = attention.padded_mask(attention_mask.bool(), length, query.dtype)
    scale, step = width**-0.5 if scaling is None else scaling, max(1, WEIGHTS_AT_ONCE // (batch * heads * total))
    folded, parts = query.unflatten(1, (-1, groups)) * scale, []
    for at in range(0, length, step):
        part = folded[:, :, :, at : at + step]
        weights = torch.einsum("bkgqd,bktd->bkgqt", part, key) + attention_mask[:, :, None, at : at + step]
        far = weights[..., first:end]
        far.masked_fill_(far < far.topk(budget, dim=-1).values[..., -1:], torch.finfo(far.dtype).min)
        parts.append(torch.einsum("bkgqt,bktd->bkgqd", weights.softmax(-1, torch.float32).to(value), value))
    return torch.cat(parts, dim=3).flatten(1, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PER_HEAD, per_head_attention)
