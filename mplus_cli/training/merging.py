"""An adapter merged into the weights it adapts, with gradient: one product per projection, not four operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F

from mplus_cli.core.adapters import Adapter
from mplus_cli.core.merged import can_merge, merged_weight
from mplus_cli.core.modeling_mplus import MPlusForCausalLM


@contextmanager
def merged_adapter(model: MPlusForCausalLM, adapter: Adapter, unless: bool = False) -> Iterator[None]:
    """Make `adapter` active; within the block every projection runs as `weight + scale * B A`, made once for the block.

    Gradient goes through the sum to the weight and to both matrices. For a small model with many rows that is most of
    an adapter's cost saved; numbers agree with the unmerged form to rounding. Without gradient, and where the sum would
    be rounded (see `core.merged.can_merge`), nothing is merged here.

    Args:
        unless: do not merge; for passes that are recomputed after the block.
    """
    model.adapters.use(adapter)
    layers = model.adapters.layers if torch.is_grad_enabled() else []
    if unless or not can_merge(layers, adapter):
        layers = []
    for layer in layers:
        bias = layer.get_base_layer().bias
        vars(layer)["forward"] = partial(F.linear, weight=merged_weight(layer, adapter), bias=bias)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]
