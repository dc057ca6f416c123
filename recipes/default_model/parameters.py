"""Sizes and parameters of the bundled model, in the form it is trained in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")  # those with adapters


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model; the names are those of the core's configuration."""

    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 256
    rope_theta: float = 1_000_000.0
    eps: float = 1e-6
    chunk: int = 96
    memory_tokens: int = 48  # K: memory tokens made by one write
    short_term: int = 384  # N: short-term tokens per layer
    budget: int = 192  # K_theta: long-term tokens retrieved per layer
    retriever: int = 64
    lora_rank: int = 8
    lora_alpha: int = 16


class Adapter(nn.Module):
    """One LoRA pair, merged into its weight before use: `weight + scale * B A` (0 at the start)."""

    def __init__(self, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, d_in) / math.sqrt(d_in))
        self.b = nn.Parameter(torch.zeros(d_out, rank))


class Layer(nn.Module):
    """Parameters of one decoder layer, its per-layer BOS row, its adapters and its retriever."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        shapes = {
            "q_proj": (q, s.hidden),
            "k_proj": (kv, s.hidden),
            "v_proj": (kv, s.hidden),
            "o_proj": (s.hidden, q),
            "gate_proj": (s.mlp, s.hidden),
            "up_proj": (s.mlp, s.hidden),
            "down_proj": (s.hidden, s.mlp),
        }
        self.weights = nn.ParameterDict(
            {
                name: nn.Parameter(
                    torch.zeros(o, i) if name in ("o_proj", "down_proj") else torch.randn(o, i) / math.sqrt(i)
                )
                for name, (o, i) in shapes.items()
            }
        )
        self.input_norm = nn.Parameter(torch.ones(s.hidden))
        self.post_norm = nn.Parameter(torch.ones(s.hidden))
        self.q_norm = nn.Parameter(torch.full((s.head_dim,), 1.5))
        self.k_norm = nn.Parameter(torch.full((s.head_dim,), 1.5))
        self.bos = nn.Parameter(torch.randn(1, s.hidden))
        self.adapters: Any = nn.ModuleDict(
            {
                mode: nn.ModuleDict({p: Adapter(shapes[p][1], shapes[p][0], s.lora_rank) for p in PROJECTIONS})
                for mode in ("write", "read")
            }
        )
        self.query: Any = nn.ModuleList(
            [nn.Linear(s.hidden, 2 * s.retriever, False), nn.Linear(2 * s.retriever, s.retriever, False)]
        )
        self.key: Any = nn.ModuleList(
            [nn.Linear(s.hidden, 2 * s.retriever, False), nn.Linear(2 * s.retriever, s.retriever, False)]
        )
