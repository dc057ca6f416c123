"""Long-term memories of a batch lent to each other: large stores in which little is about what is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from mplus_cli.core.long_term_memory import LongTermMemory
from mplus_cli.core.memory import Memory

Contents = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # per layer values [m, d], keys [m, r], created [m]
APART = 1 << 40  # between creation indices of two texts lent one after the other


@contextmanager
def lent_stores(memory: Memory, rng: np.random.Generator) -> Iterator[None]:
    """Within the block every row's long-term memory also holds that of all other rows, in an order drawn for each row.

    A reader that is trained on stores of one document alone is misled by what it retrieves from larger ones. Texts of
    other rows are as good as a long past, and were written with the present weights. They come before and after what is
    the row's own: where its own always came last, the reader would learn that the last retrieved tokens are those that
    count, and older ones would not be believed. Nothing is written in the block.
    """
    before = memory.long_term
    memory.long_term = lend(memory, rng)
    memory.changed()  # what reads have kept is of the stores before
    try:
        yield
    finally:
        memory.long_term = before
        memory.changed()


def lend(memory: Memory, rng: np.random.Generator) -> list[LongTermMemory]:
    """For every row its long-term memory among those of all other rows."""
    rows = len(memory.long_term)
    if rows < 2:
        return memory.long_term
    held = [_contents(store) for store in memory.long_term]
    return [_among_others(memory, row, held, rng.permutation(rows).tolist()) for row in range(rows)]


def _contents(store: LongTermMemory) -> Contents:
    found = []
    for index, layer in enumerate(store.layers):
        positions = layer.all_positions()
        found.append((layer.fetch(index, positions), layer.keys.gather(positions), layer.all_created()))
    return found


def _among_others(memory: Memory, row: int, held: list[Contents], order: Sequence[int]) -> LongTermMemory:
    own, own_place = memory.long_term[row], order.index(row)
    values, keys, created = [], [], []
    for layer in range(len(own.layers)):
        parts = [held[other][layer] for other in order]
        values.append(torch.cat([part[0] for part in parts]))
        keys.append(torch.cat([part[1] for part in parts]))
        # A row's own tokens keep their creation indices, by which its questions and graded writes name them.
        created.append(torch.cat([part[2] + APART * (place - own_place) for place, part in enumerate(parts)]))
    devices = [layer.keys.device for layer in own.layers]
    lent = LongTermMemory(memory.config, len(devices), values[0].shape[-1], values[0].dtype, devices, own.codec)
    lent.load(values, keys, created)
    return lent
