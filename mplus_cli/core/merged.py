"""Adapters merged into a second copy of the weights they adapt: no extra matrix products where nothing is trained."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from mplus_cli.core.linear import linear


class MergedWeights:
    """One adapter's `weight + scale * B A` of every adapted layer, made when first used and made again after a change.

    The weights themselves are never touched, so switching back is bit-exact and nothing drifts. The price is a second
    copy of the adapted matrices for each merged adapter.
    """

    def __init__(self, layers: list[Any], adapter: str) -> None:
        self.layers, self.adapter = layers, adapter
        self._sources = [
            (layer.get_base_layer().weight, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)
            for layer in layers
        ]
        self._stamp: object = None
        self._forwards: list[partial] = []

    def forwards(self) -> list[partial]:
        """What takes the place of each layer's `forward`; empty where merging would change the results."""
        # A move to another device or dtype keeps a parameter's version but not its storage. Parameters made in
        # inference mode have no version.
        stamp = tuple(
            (0 if p.is_inference() else p._version, p.data_ptr(), p.dtype) for source in self._sources for p in source
        )
        if stamp != self._stamp:
            mergeable = can_merge(self.layers, self.adapter)
            self._forwards = [self._forward(layer) for layer in self.layers] if mergeable else []
            self._stamp = stamp
        return self._forwards

    def _forward(self, layer: Any) -> partial:
        with torch.no_grad():
            weight = merged_weight(layer, self.adapter)
        return partial(linear, weight=weight, bias=layer.get_base_layer().bias)


def merged_weight(layer: Any, adapter: str) -> torch.Tensor:
    """`weight + scale * B A` of an adapted layer, [out, in]. Differentiable."""
    pair = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
    return torch.addmm(layer.get_base_layer().weight, *pair, alpha=layer.scaling[adapter])


def can_merge(layers: list[Any], adapter: str) -> bool:
    """Whether merging leaves the results as they are: weights in float32, and plain LoRA without dropout.

    In bfloat16 the sum is rounded, and a small adapter would partly be rounded away.
    """
    return all(
        layer.get_base_layer().weight.dtype == torch.float32
        and not layer.use_dora.get(adapter, False)
        and not getattr(layer.lora_dropout[adapter], "p", 0)
        for layer in layers
    )
