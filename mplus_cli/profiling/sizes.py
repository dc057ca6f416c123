"""The sizes of a model and of its memory at a length, from its configuration: what all estimates are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mplus_cli.core.configuration_mplus import MPlusConfig


@dataclass(frozen=True)
class Sizes:
    """A memory model in numbers; one letter as in the rest of the project.

    Attributes:
        d: width; L: layers; I: width of the MLP; V: vocabulary.
        q, kv: width of all query heads, and of all key/value heads; D: of one head.
        K, N, M, budget: memory tokens per write, short-term, long-term at most, retrieved per read.
        r: retriever; rank: of the adapters; bytes: of one number.
    """

    config: MPlusConfig
    L: int
    d: int
    q: int
    kv: int
    D: int
    I: int  # noqa: E741
    V: int
    K: int
    N: int
    M: int
    budget: int
    r: int
    rank: int
    chunk: int
    bytes: int

    @classmethod
    def of(cls, config: MPlusConfig, dtype: torch.dtype) -> Sizes:
        """The sizes of a configuration whose weights and memory are of `dtype`."""
        text = config.text_config
        lora: dict[str, Any] = config.lora or {"r": 0}
        heads, width = text.num_attention_heads, text.hidden_size
        head = getattr(text, "head_dim", None) or width // heads
        return cls(
            config=config,
            L=text.num_hidden_layers,
            d=width,
            q=heads * head,
            kv=(text.num_key_value_heads or heads) * head,
            D=head,
            I=text.intermediate_size,
            V=text.vocab_size,
            K=config.memory_tokens_per_write,
            N=config.short_term_size,
            M=config.long_term_capacity,
            budget=config.retrieval_budget if config.has_long_term_memory else 0,
            r=config.retriever_size,
            rank=lora["r"],
            chunk=config.chunk_size,
            bytes=dtype.itemsize,
        )

    @property
    def heads(self) -> int:
        return self.q // self.D

    # -- parameters --

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the matrices of one layer."""
        return {
            "q_proj": (self.d, self.q),
            "k_proj": (self.d, self.kv),
            "v_proj": (self.d, self.kv),
            "o_proj": (self.q, self.d),
            "gate_proj": (self.d, self.I),
            "up_proj": (self.d, self.I),
            "down_proj": (self.I, self.d),
        }

    @property
    def adapted(self) -> list[str]:
        """Names of the matrices that have adapters."""
        lora: dict[str, Any] = self.config.lora or {"target_modules": []}
        return [name for name in self.matrices if name in lora["target_modules"]]

    def layer_weights(self, names: list[str] | None = None) -> int:
        """Parameters of these matrices of one layer, all by default."""
        return sum(a * b for name, (a, b) in self.matrices.items() if names is None or name in names)

    def adapter_weights(self, names: list[str] | None = None) -> int:
        """Parameters of one adapter of these matrices of one layer."""
        return sum(self.rank * sum(self.matrices[name]) for name in self.adapted if names is None or name in names)

    @property
    def projector(self) -> int:
        """Parameters of one retrieval projector."""
        two = self.config.retriever_layers == 2
        return self.d * 2 * self.r + 2 * self.r * self.r if two else self.d * self.r

    @property
    def backbone(self) -> int:
        """Parameters of the plain model, embeddings and head included."""
        head = 0 if self.config.tie_word_embeddings else self.V * self.d
        return self.V * self.d + head + self.L * (self.layer_weights() + 2 * self.d) + self.d

    @property
    def memory_model(self) -> int:
        """Parameters of the memory model: backbone, both adapters, retrievers, BOS rows."""
        projectors = (3 if self.config.write_query else 2) * self.projector if self.config.has_long_term_memory else 0
        return self.backbone + self.L * (2 * self.adapter_weights() + projectors + self.d) + self.d


@dataclass(frozen=True)
class Fill:
    """What a memory holds after a text: writes, and tokens per layer in each memory; retrieved: of a read."""

    writes: int
    short: int
    long: int
    retrieved: int

    @property
    def prefix(self) -> int:
        """Entries that a read attends to before its own text, the BOS row included."""
        return 1 + self.short + self.retrieved

    @classmethod
    def after(cls, sizes: Sizes, injected: int, chunk: int, long_term: bool, stored: int = 0) -> Fill:
        """After `injected` tokens in chunks of `chunk`, with `stored` further long-term tokens before."""
        config = sizes.config
        writes = -(-injected // chunk)
        held = config.initial_short_term_size + writes * sizes.K
        dropped = max(0, held - sizes.N)
        long = min(sizes.M, config.initial_long_term_size + stored + dropped) if long_term else 0
        retrieved = min(sizes.budget, long) if config.fill_rule == "all" or not long else sizes.budget
        return cls(writes, min(held, sizes.N), long, retrieved)
