"""Small things that many tests need: a byte-level tokenizer and a tiny random model with memory."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.modeling_mplus import MPlusForCausalLM


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, ids 3 to 258; begin, end and padding are 0, 1, 2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[2]
    )


def tiny_model(seed: int = 0, **overrides) -> MPlusForCausalLM:
    """A random three-layer model for `byte_tokenizer`: K=8, N=32, M=80, K_theta=16, chunks of 64 tokens."""
    text = AutoConfig.for_model(
        "llama",
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=259,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    memory = {
        "memory_tokens_per_write": 8,
        "short_term_size": 32,
        "long_term_capacity": 80,
        "retrieval_budget": 16,
        "retriever_size": 8,
        "chunk_size": 64,
    }
    torch.manual_seed(seed)
    model = MPlusForCausalLM(MPlusConfig(text_config=text, **(memory | {"lora": {"r": 2, "alpha": 4}} | overrides)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith(("bos_embedding", "positional_emb")):
                parameter.normal_(0, 0.3)
    return model.eval()


def save_tiny_model(folder: Path, seed: int = 0, **overrides) -> Path:
    """`tiny_model` and its tokenizer in a folder, as `--model` takes it."""
    tiny_model(seed, **overrides).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def book(paragraphs: int = 60) -> str:
    """About 100 characters a paragraph, each different."""
    return "".join(
        f"Chapter {n}.\nIn the year {1200 + 7 * n} the miller of Vorn{n} sold {n * n} sacks of flour to the abbot.\n\n"
        for n in range(1, paragraphs + 1)
    )
