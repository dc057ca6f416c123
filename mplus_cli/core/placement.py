"""Layers on several devices: spans of consecutive layers, each with its part of memory; all else stays on the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.host_embedding import HostEmbedding

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM


@dataclass(frozen=True)
class Span:
    """Layers `first` to `end` (not included) on one device."""

    first: int
    end: int
    device: torch.device

    @property
    def layers(self) -> slice:
        return slice(self.first, self.end)

    def __len__(self) -> int:
        return self.end - self.first


def spans_of(counts: Sequence[int], devices: Sequence[torch.device]) -> list[Span]:
    """Spans of so many consecutive layers on each device; devices without layers are left out."""
    spans, first = [], 0
    for count, device in zip(counts, devices, strict=True):
        if count:
            spans.append(Span(first, first + count, device))
        first += count
    return spans


def share_out(layers: int, layer_bytes: int, rest_bytes: int, free: Sequence[int]) -> list[int]:
    """Layers per device, as even as room allows, since a pipeline is as fast as its slowest part.

    Args:
        layer_bytes: of one layer with its memory; rest_bytes: of everything else, which lies on the first device.
        free: bytes that each device has.

    Returns:
        Counts that add up to `layers`, or to less where there is too little room.
    """
    room = [(have - (0 if at else rest_bytes)) // layer_bytes for at, have in enumerate(free)]
    counts = [0] * len(room)
    for _ in range(layers):
        open_ = [at for at, count in enumerate(counts) if count < room[at]]
        if not open_:
            break
        counts[min(open_, key=lambda at: counts[at])] += 1
    return counts


def layer_bytes(model: MPlusForCausalLM) -> tuple[int, int]:
    """Bytes of the largest layer with its memory on the device, and of all that is no layer and not on the host.

    A layer's memory: short-term values, retrieval keys, and the keys and values that a read makes of the prefix.
    """
    config: MPlusConfig = model.config
    text, width = config.text_config, model.dtype.itemsize
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = text.num_key_value_heads or text.num_attention_heads
    stored = config.long_term_capacity * config.retriever_size
    read = 2 * heads * head * (config.short_term_size + config.retrieval_budget) if config.has_long_term_memory else 0
    memory = width * (config.short_term_size * text.hidden_size + stored + read)
    parts = [
        sum(parameter.nbytes for module in modules for parameter in module.parameters())
        for modules in (_layer(model, index) for index in range(text.num_hidden_layers))
    ]
    table = model.get_input_embeddings()
    hosted = table.weight.nbytes if isinstance(table, HostEmbedding) else 0
    return max(parts) + memory, sum(parameter.nbytes for parameter in model.parameters()) - sum(parts) - hosted


def place(model: MPlusForCausalLM, spans: Sequence[Span]) -> None:
    """Move every layer and its retriever to its device, everything else to the first one. Memories made later follow.

    Raises:
        ValueError: the spans are not all layers in order.
    """
    ends = [0, *(span.end for span in spans)]
    if [span.first for span in spans] != ends[:-1] or ends[-1] != len(model.model.layers):
        raise ValueError(f"{list(spans)} are not the {len(model.model.layers)} layers in order")
    layers, retrievers = model.model.layers, model.retrievers
    model.model.layers, model.retrievers = torch.nn.ModuleList(), torch.nn.ModuleList()
    try:
        model.to(spans[0].device)  # type: ignore[arg-type]
    finally:
        model.model.layers, model.retrievers = layers, retrievers
    for span in spans:
        for index in range(span.first, span.end):
            for module in _layer(model, index):
                module.to(span.device)
    model.spans = list(spans)


def _layer(model: MPlusForCausalLM, index: int) -> list[torch.nn.Module]:
    """The modules that belong to one layer."""
    return [model.model.layers[index], *([model.retrievers[index]] if len(model.retrievers) else [])]


def joined(parts: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """The parts of all spans as one tensor, on the device of the first."""
    return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device) for part in parts], dim)


def parted(whole: torch.Tensor, spans: Sequence[Span], dim: int = 0) -> list[torch.Tensor]:
    """One tensor of all layers as the parts of the spans, on their devices."""
    if len(spans) == 1:
        return [whole.to(spans[0].device)]
    return [part.to(span.device) for part, span in zip(whole.split([len(s) for s in spans], dim), spans, strict=True)]
