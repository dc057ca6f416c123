"""Gradient checkpointing of decoder layers that read a memory prefix.

Hugging Face's own checkpointing drops the cache of a layer, and the cache is where the prefix is. Here a layer is run
again in the backward pass from what it was given: its rows and the keys and values of its prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from mplus_cli.core.modeling_mplus import MPlusForCausalLM


@contextmanager
def recomputed_layers(model: MPlusForCausalLM, enabled: bool) -> Iterator[None]:
    """Within the block every decoder layer keeps its inputs only."""
    if not enabled or not torch.is_grad_enabled():
        yield
        return
    layers: list[Any] = list(model.model.layers)
    for index, layer in enumerate(layers):
        layer.forward = partial(_layer, model, index, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def recomputed_keys_values(model: MPlusForCausalLM, index: int, *arguments: torch.Tensor) -> Any:
    """`model.keys_values`, keeping the rows only."""
    return checkpoint(_UnderAdapter(model, partial(model.keys_values, index)), *arguments, use_reentrant=False)


def _layer(
    model: MPlusForCausalLM, index: int, forward: Callable, hidden: torch.Tensor, *, past_key_values: Any, **kwargs: Any
) -> torch.Tensor:
    held = past_key_values.layers[index]
    keys, values = held.keys, held.values

    def run(hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        held.set_prefix(keys, values)
        out = forward(hidden, past_key_values=past_key_values, **kwargs)
        held.set_prefix(keys, values)  # or the cache would hold what checkpointing is there to let go
        return out

    return checkpoint(_UnderAdapter(model, run), hidden, keys, values, use_reentrant=False)


class _UnderAdapter:
    """Runs a function under the adapter that was active when this was made, also in the backward pass."""

    def __init__(self, model: MPlusForCausalLM, function: Callable) -> None:
        self.model, self.function, self.adapter = model, function, model.adapters.active

    def __call__(self, *arguments: torch.Tensor) -> Any:
        if self.adapter is not None:
            self.model.adapters.use(self.adapter)
        return self.function(*arguments)
