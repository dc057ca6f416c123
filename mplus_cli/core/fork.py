"""A second memory that goes on from where a memory stands, while the first stays as it is."""

from __future__ import annotations

import copy

import torch

from mplus_cli.core.long_term_memory import LayerStore, LongTermMemory
from mplus_cli.core.memory import Memory
from mplus_cli.core.short_term_memory import ShortTermMemory


@torch.inference_mode(False)  # a memory outlives the mode it was made in
def fork(memory: Memory) -> Memory:
    """A memory with the same content that can be written to, at the cost of short-term memory and little more.

    What long-term memory holds is shared, whatever its size; only the block that is being filled is copied. Neither of
    the two sees what is written to the other afterwards. The fork keeps no journal.
    """
    other = copy.copy(memory)
    other.seeds, other.created_total = list(memory.seeds), list(memory.created_total)
    other.short_term = _fork_short_term(memory.short_term)
    other.long_term = [_fork_long_term(store) for store in memory.long_term]
    other.journal, other.last_retrieval = None, []
    other.changed()
    return other


def _fork_short_term(pool: ShortTermMemory) -> ShortTermMemory:
    other = copy.copy(pool)
    other.parts, other.created = [part.clone() for part in pool.parts], pool.created.clone()
    other.fill, other._newest = list(pool.fill), list(pool._newest)
    return other


def _fork_long_term(store: LongTermMemory) -> LongTermMemory:
    other = copy.copy(store)
    other.layers = [_fork_layer(layer) for layer in store.layers]
    return other


def _fork_layer(layer: LayerStore) -> LayerStore:
    other = copy.copy(layer)
    other.values, other.keys, other.created = layer.values.fork(), layer.keys.fork(), layer.created.fork()
    return other
