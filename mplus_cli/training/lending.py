"""Long-term memories of a batch lent to each other: large stores in which little is about what is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mplus_cli.core.long_term_memory import LongTermMemory
from mplus_cli.core.memory import Memory
from mplus_cli.training.searching import live_created

Contents = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # per layer values [m, d], keys [m, r], created [m]
BEFORE = 1 << 40  # what is lent counts as created so long before anything of the row's own


@contextmanager
def lent_stores(memory: Memory) -> Iterator[None]:
    """Within the block every row's long-term memory also holds that of all other rows, as if read before its own.

    A reader that is trained on stores of one document alone is misled by what it retrieves from larger ones. Texts of
    other rows are as good as a long past, and were written with the present weights. Nothing is written in the block.
    """
    before = memory.long_term
    memory.long_term = lend(memory)
    memory.changed()  # what reads have kept is of the stores before
    try:
        yield
    finally:
        memory.long_term = before
        memory.changed()


def lend(memory: Memory) -> list[LongTermMemory]:
    """For every row its long-term memory with those of all other rows before it."""
    if len(memory.long_term) < 2:
        return memory.long_term
    held = [_contents(store) for store in memory.long_term]
    return [_with_others(memory, row, held) for row in range(len(held))]


def _contents(store: LongTermMemory) -> Contents:
    found = []
    for index, layer in enumerate(store.layers):
        positions = layer.all_positions()
        found.append((layer.fetch(index, positions), layer.keys.gather(positions), live_created(layer)))
    return found


def _with_others(memory: Memory, row: int, held: list[Contents]) -> LongTermMemory:
    own = memory.long_term[row]
    order = [*range(row + 1, len(held)), *range(row)]
    values, keys, created = [], [], []
    for layer in range(len(own.layers)):
        parts = [held[other][layer] for other in order]
        past = [part[2] - BEFORE * (len(order) - place) for place, part in enumerate(parts)]
        mine = held[row][layer]
        values.append(torch.cat([*(part[0] for part in parts), mine[0]]))
        keys.append(torch.cat([*(part[1] for part in parts), mine[1]]))
        created.append(torch.cat([*past, mine[2]]))
    width = values[0].shape[-1]
    lent = LongTermMemory(memory.config, len(own.layers), width, values[0].dtype, own.device, own.layers[0].codec)
    lent.load(values, keys, created)
    return lent
