"""Memories to put into states: of a model without the arithmetic, as a checkpoint brings them, and taken apart."""

from __future__ import annotations

import torch

from mplus_cli.core.memory import Memory
from tests.core.helpers import random_ids, tiny_config

LAYERS, WIDTH, KEY = 3, 64, 16


class FakeModel:
    """What MemoryState needs of a model, without the arithmetic."""

    def __init__(self, config, name: str = "fake", dtype: torch.dtype = torch.float32, values: str = "model") -> None:
        self.values = values
        self.config, self.name, self.dtype, self.device = config, name, dtype, torch.device("cpu")

    def fingerprint(self) -> dict[str, str]:
        return {"config_sha256": "c", "weights_sha256": self.name, "name": f"models/{self.name}"}

    def new_memory(
        self, batch_size: int = 1, seed: int = 0, initial: str = "empty", values: str | None = None
    ) -> Memory:
        return Memory(self.config, batch_size, seed, self.dtype, values=values or self.values)

    def memory_keys(self, layer: int, rows: torch.Tensor) -> torch.Tensor:
        return rows[..., :KEY] * (layer + 1)

    def write(self, memory: Memory, count: int, row: int = 0, source: str = "s") -> None:
        """A write of `count` random tokens, a function of the memory's seed and length."""
        created = memory.created_total[row]
        random = torch.Generator().manual_seed(1000 * memory.seeds[row] + created)
        tokens = torch.randn(LAYERS, count, WIDTH, generator=random).to(self.dtype)
        keys = self.memory_keys if self.config.has_long_term_memory else None
        note = {"source": source, "sha256": f"sha of {source}", "start": created, "end": created + count, "tokens": 2}
        memory.append(row, tokens, keys, note)


def content(memory: Memory, row: int = 0) -> list[torch.Tensor]:
    """Everything in a memory, in order."""
    out = list(memory.short_term.ordered(row))
    for store in memory.long_term[row : row + 1]:
        for layer, part in enumerate(store.layers):
            values, created = part.take(layer, part.all_positions())
            keys = torch.cat([torch.empty(0, KEY), *(view.float() for view in part.keys.views())])
            out += [values, created, keys]
            if store.config.eviction == "recall_frequency":
                out.append(part.recall_frequency)
        out.append(torch.tensor([store.pending, store.writes_since_merge]))
    return [*out, torch.tensor([memory.created_total[row], memory.seeds[row]])]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def recall_config(**more):
    rule = {"eviction": "recall_frequency", "merge_every": 3, "initial_recall_frequency": 3.0, "fill_rule": "tile"}
    return tiny_config(**(rule | {"retrieval_budget": 4} | more))


def with_checkpoint_memory(memory: Memory) -> Memory:
    """What a published checkpoint brings: a full short-term memory, and long-term tokens in no order."""
    random = torch.Generator().manual_seed(1)
    tokens = memory.codec.round(torch.randn(LAYERS, 32, WIDTH, generator=random))
    memory.short_term.load(0, tokens, torch.arange(-32, 0).expand(LAYERS, -1))
    if memory.long_term:
        created = [-33 - torch.randperm(20, generator=random) for _ in range(LAYERS)]
        values = [memory.codec.round(torch.randn(20, WIDTH, generator=random)) for _ in range(LAYERS)]
        recall = [torch.randint(1, 4, (20,), generator=random).float() for _ in range(LAYERS)]
        memory.long_term[0].load(values, [v[:, :KEY].clone() for v in values], created, recall)
    memory.changed()
    return memory


CONFIGS = {
    "oldest": tiny_config(),
    "recall": recall_config(),
    "short-term-only": tiny_config(long_term_capacity=0, retrieval_budget=0),
}


def note(number: int, source: str = "book.txt") -> dict:
    return {
        "source": source,
        "sha256": "ab" * 32,
        "start": 100 * number,
        "end": 100 * number + 100,
        "tokens": 16,
        "time": f"2025-01-01T00:{number:02}:00+00:00",
    }


def inject(model, memory: Memory, numbers, source: str = "book.txt") -> None:
    for number in numbers:
        model.inject(random_ids(1, 16, seed=number), memory, notes=[note(number, source)])
