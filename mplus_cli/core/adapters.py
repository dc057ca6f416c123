"""The write and read LoRA adapters: attached once through peft, then switched without searching the model."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mplus_cli.core.merged import MergedWeights

Adapter = Literal["write", "read"]
WRITE: Adapter = "write"
READ: Adapter = "read"


class AdapterSwitch:
    """Two adapters on one backbone, "write" (injection) and "read" (everything else).

    The adapted layers are collected once. A switch touches them only when the adapter really changes, and leaves
    `requires_grad` as it was: in training both adapters stay trainable while either is active.
    """

    def __init__(self, backbone: nn.Module, lora: dict | None) -> None:
        self.layers: list[Any] = []
        self.active: Adapter | None = None
        self._merged: dict[str, MergedWeights] = {}
        self._replaced: list[partial] = []
        if lora is None:
            return
        settings = LoraConfig(
            r=lora["r"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=list(lora["target_modules"]),
        )
        trainable = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
        with warnings.catch_warnings():
            # Two adapters on one backbone are the point here; peft warns about the second.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            for adapter in (WRITE, READ):
                inject_adapter_in_model(settings, backbone, adapter_name=adapter)
        for name, parameter in backbone.named_parameters():
            # peft freezes the backbone; whether it trains is for the training stage to say.
            parameter.requires_grad_(trainable.get(name.replace(".base_layer", ""), True))
        self.layers = [module for module in backbone.modules() if isinstance(module, BaseTunerLayer)]
        self.use(READ)

    def use(self, adapter: Adapter) -> None:
        """Make `adapter` the active one; in its merged form if it has one and no gradient is wanted."""
        if adapter != self.active:
            for layer in self.layers:
                flags = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
                layer.set_adapter(adapter)
                for parameter, flag in flags:
                    parameter.requires_grad_(flag)
            self.active = adapter
        merged = None if torch.is_grad_enabled() else self._merged.get(adapter)
        self._replace(merged.forwards() if merged else [])

    def merge(self, *adapters: Adapter) -> None:
        """From now on run these adapters merged into copies of the weights wherever no gradient is wanted.

        The results agree to rounding, and the weights stay as they are. Where rounding would matter (see
        `merged.can_merge`) nothing changes, also when the model is moved to such a dtype later.
        """
        self._merged = {a: MergedWeights(self.layers, a) for a in adapters}
        if self.active is not None:
            self.use(self.active)

    @contextmanager
    def merging(self, *adapters: Adapter):
        """Run a block under `merge(*adapters)`, merged anew: an optimizer may change weights without a trace."""
        before = self._merged
        self.merge(*adapters)
        try:
            yield
        finally:
            self._merged = before
            if self.active is not None:
                self.use(self.active)

    @property
    def merged(self) -> bool:
        """Whether the layers run in merged form now."""
        return bool(self._replaced)

    def _replace(self, forwards: list[partial]) -> None:
        if forwards is self._replaced or not (forwards or self._replaced):
            return
        for layer in self.layers:
            vars(layer).pop("forward", None)
        for layer, forward in zip(self.layers, forwards, strict=False):
            vars(layer)["forward"] = forward
        self._replaced = forwards

    @contextmanager
    def using(self, adapter: Adapter):
        """Run a block under `adapter`, then return to the one before."""
        before = self.active
        self.use(adapter)
        try:
            yield
        finally:
            if before is not None:
                self.use(before)


def lora_parameters(model: nn.Module, adapter: Adapter) -> list[torch.nn.Parameter]:
    """The trainable tensors of one adapter."""
    return [p for name, p in model.named_parameters() if ".lora_" in name and f".{adapter}." in name]
