"""What a process carries from step to step: a memory per batch row, and the documents that wait to be asked again."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.training.chance import number
from mplus_cli.training.contexts import Span
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.stages import STAGES


@dataclass(frozen=True)
class CachedTarget:
    """The target of a document written a while ago, to be asked for again (M+ appendix D, revisit).

    Attributes:
        id: of the document.
        target, labels: token ids.
        span: creation indices of its contexts' memory tokens; what is left of them are the retriever's positives.
        contexts: how many contexts the row had been written when it was cached.
    """

    id: str
    target: list[int]
    labels: list[int]
    span: Span
    contexts: int


class RowState:
    """One process's memories. Every process has its own; they are never averaged or exchanged.

    Make it after the model has its final dtype and device: memory takes both from it.

    Attributes:
        memory: B rows; None for a stage without memory.
        cached: per row the document that a revisit asks for.
        contexts: contexts written to each row since its memory was new.
        renewals: how often memory was made new.
    """

    def __init__(self, model: MPlusForCausalLM, recipe: Recipe, rank: int = 0) -> None:
        self.recipe, self.rank = recipe, rank
        self.batch_size = recipe.data.batch_size
        self.config = copy.deepcopy(model.config)
        if STAGES[recipe.stage].memories != "both":
            self.config.long_term_capacity = 0  # retrievers may be trained on short-term memory alone
        self.renewals = -1
        self.memory: Memory | None = None
        self.renew(model)

    def renew(self, model: MPlusForCausalLM) -> None:
        """Start all rows from a new memory with seeds of its own, so that no two lives drop the same tokens."""
        self.renewals += 1
        self.cached: list[CachedTarget | None] = [None] * self.batch_size
        self.contexts = [0] * self.batch_size
        if STAGES[self.recipe.stage].memories == "none":
            return
        self.memory = Memory(self.config, self.batch_size, self._seeds(), model.dtype, model.device)
        if self.recipe.memory.initial == "noise":
            self._fill_with_noise(self.memory)

    def remember(self, row: int, id: str, target: list[int], labels: list[int], span: Span) -> None:
        """Keep a document's target for a revisit."""
        self.cached[row] = CachedTarget(id, target, labels, span, self.contexts[row])

    @torch.no_grad()
    def refresh_keys(self, model: MPlusForCausalLM) -> None:
        """Make the retrieval keys of long-term memory again, with the present weights."""
        for store in self.memory.long_term if self.memory is not None else []:
            for index, layer in enumerate(store.layers):
                at = layer.created.start
                for block in layer.keys.views():
                    values = layer.fetch(index, torch.arange(at, at + len(block)))
                    block.copy_(model.memory_keys(index, values.to(block.device)))
                    at += len(block)

    # -- saving --

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data from which `load_state_dict` restores every later step exactly."""
        memory = None if self.memory is None else _memory_state(self.memory)
        cached = [None if one is None else asdict(one) for one in self.cached]
        return {"renewals": self.renewals, "contexts": list(self.contexts), "cached": cached, "memory": memory}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, of a process with the same recipe."""
        self.renewals, self.contexts = state["renewals"], list(state["contexts"])
        self.cached = [
            None if one is None else CachedTarget(**{**one, "span": tuple(one["span"])}) for one in state["cached"]
        ]
        if self.memory is not None and state["memory"] is not None:
            short = self.memory.short_term.values
            self.memory = Memory(self.config, self.batch_size, state["memory"]["seeds"], short.dtype, short.device)
            _restore_memory(self.memory, state["memory"])

    # -- making memories --

    def _seeds(self) -> list[int]:
        return [number(self.recipe.seed, "memory", self.rank, self.renewals, row) for row in range(self.batch_size)]

    def _fill_with_noise(self, memory: Memory) -> None:
        size = memory.short_term.size
        for row, seed in enumerate(memory.seeds):
            noise = torch.randn(memory.short_term.values.shape[1:], generator=torch.Generator().manual_seed(seed))
            memory.short_term.load(row, noise, torch.arange(-size, 0).expand(memory.num_layers, -1))
        memory.changed()


def _memory_state(memory: Memory) -> dict[str, Any]:
    short = memory.short_term
    rows = [
        {"values": short.values[row, :, :fill].cpu().clone(), "created": short.created[row, :, :fill].clone()}
        for row, fill in enumerate(short.fill)
    ]
    return {
        "seeds": list(memory.seeds),
        "created_total": list(memory.created_total),
        "short_term": rows,
        "long_term": [_store_state(store) for store in memory.long_term],
    }


def _store_state(store: Any) -> dict[str, Any]:
    layers = []
    for index, layer in enumerate(store.layers):
        values, created = layer.take(index, layer.all_positions())
        keys = torch.cat(
            [torch.empty(0, *layer.keys.shape, dtype=layer.keys.dtype), *(k.cpu() for k in layer.keys.views())]
        )
        held = {"start": layer.created.start, "values": values, "keys": keys, "created": created}
        layers.append(held | {"recall_frequency": layer.recall_frequency.clone()})
    return {"layers": layers, "pending": store.pending, "writes_since_merge": store.writes_since_merge}


def _restore_memory(memory: Memory, state: dict[str, Any]) -> None:
    memory.created_total = list(state["created_total"])
    for row, held in enumerate(state["short_term"]):
        memory.short_term.load(row, held["values"], held["created"])
    for store, saved in zip(memory.long_term, state["long_term"], strict=True):
        store.pending, store.writes_since_merge = saved["pending"], saved["writes_since_merge"]
        for layer, held in zip(store.layers, saved["layers"], strict=True):
            for rows in (layer.values, layer.keys, layer.created):
                rows.skip(held["start"])  # blocks begin where they did, so sums run over the same pieces
            layer.append(held["values"], held["keys"].to(layer.keys.device), held["created"])
            layer.recall_frequency = held["recall_frequency"].clone()
    memory.changed()
