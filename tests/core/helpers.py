"""Small random models for tests."""

from __future__ import annotations

import torch
from transformers import AutoConfig

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.modeling_mplus import MPlusForCausalLM

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 131,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MEMORY = {
    "memory_tokens_per_write": 8,
    "short_term_size": 32,
    "long_term_capacity": 80,
    "retrieval_budget": 16,
    "retriever_size": 16,
    "chunk_size": 16,
}


def tiny_config(family: str = "llama", lora: bool = True, **overrides) -> MPlusConfig:
    text = AutoConfig.for_model(family, **SIZES)
    settings = MEMORY | {"lora": {"r": 4, "alpha": 8}} | overrides
    return MPlusConfig(text_config=text, **(settings if lora else settings | {"lora": None}))


def tiny_model(family: str = "llama", seed: int = 0, attn: str | None = None, **overrides) -> MPlusForCausalLM:
    """A model whose every parameter is random, zero-initialised ones included, so that each one matters."""
    torch.manual_seed(seed)
    model = MPlusForCausalLM(tiny_config(family, **overrides), attn)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith(("bos_embedding", "positional_emb")):
                parameter.normal_(0, 0.3)
    return model.eval()


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def filled_memory(model, writes: int, batch: int = 1, seed: int = 0):
    memory = model.new_memory(batch, seed=list(range(seed, seed + batch)))
    for step in range(writes):
        model.inject(random_ids(batch, 16, seed=1000 * seed + step), memory)
    return memory
