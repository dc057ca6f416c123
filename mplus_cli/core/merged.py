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
        """What takes the place of each layer's `forward`."""
        # A move to another device or dtype keeps a parameter's version but not its storage. Parameters made in
        # inference mode have no version.
        stamp = tuple(
            (0 if p.is_inference() else p._version, p.data_ptr(), p.dtype) for source in self._sources for p in source
        )
        if stamp != self._stamp:
            self._forwards, self._stamp = [self._forward(layer) for layer in self.layers], stamp
        return self._forwards

    def _forward(self, layer: Any) -> partial:
        base, a, b = layer.get_base_layer(), layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight
        with torch.no_grad():
            weight = torch.addmm(base.weight.detach(), b, a, alpha=layer.scaling[self.adapter])
        return partial(linear, weight=weight, bias=base.bias)


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
