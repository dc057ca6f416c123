"""The decoder families that can carry a memory, and how each makes keys and values of a memory token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig

from mplus_cli.core import attention
from mplus_cli.errors import CheckpointError


@dataclass(frozen=True)
class Family:
    """What differs between decoder families in making keys of memory rows.

    Attributes:
        key_norm: name of the per-head key normalisation inside the attention module, or None.
    """

    key_norm: str | None = None


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(key_norm="k_norm"),
}


def build_backbone(config: PretrainedConfig, attn_implementation: str) -> nn.Module:
    """The decoder without its head, stock Hugging Face, with full attention in every layer."""
    if config.model_type not in FAMILIES:
        raise CheckpointError(
            f"Backbone family {config.model_type!r} is not supported; known: {', '.join(sorted(FAMILIES))}.",
            "Add a row to FAMILIES in mplus_cli/core/backbones.py if it is a Llama-like decoder.",
        )
    # Memory lies farther back than any window; sliding attention would cut it off.
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = None
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * config.num_hidden_layers
    name = attention.NAME if attn_implementation == "sdpa" else attn_implementation
    return AutoModel.from_config(config, attn_implementation=name)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding. x: [B, H, P, D]; cos, sin: [B or 1, P, D]."""
    half = x.shape[-1] // 2
    sin = sin.unsqueeze(1)
    turned = x * cos.unsqueeze(1)
    turned[..., :half] -= x[..., half:] * sin[..., :half]
    turned[..., half:] += x[..., :half] * sin[..., half:]
    return turned


def project_memory(layer: Any, key_norm: str | None, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys, not yet rotated, and values that a decoder layer makes of extra input rows.

    Args:
        rows: [..., P, d], memory tokens, before the layer's input norm.

    Returns:
        Two [..., P, H_kv, D].
    """
    attn: Any = layer.self_attn
    normed = layer.input_layernorm(rows)
    heads = (-1, attn.head_dim)
    keys = attn.k_proj(normed).unflatten(-1, heads)
    if key_norm is not None:
        keys = getattr(attn, key_norm)(keys)
    return keys, attn.v_proj(normed).unflatten(-1, heads)
