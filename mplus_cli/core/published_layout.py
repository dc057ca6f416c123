"""The authors' checkpoint layouts (M+ and MemoryLLM-8B): their config keys and tensor names in ours.

Published checkpoints are a stock Llama configuration with extra keys, LoRA sets named `default` (write) and
`decoder_adapter` (read) inside the model, retrieval projectors inside self-attention, and the memory itself as tensors.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.errors import CheckpointError

_RENAMES = (
    (re.compile(r"\.lora_([AB])\.default\."), r".lora_\1.write."),
    (re.compile(r"\.lora_([AB])\.decoder_adapter\."), r".lora_\1.read."),
    (re.compile(r"^model\.layers\.(\d+)\.self_attn\.encoder_query_proj\."), r"retrievers.\1.write_query_proj."),
    (re.compile(r"^model\.layers\.(\d+)\.self_attn\.(query|key)_proj\."), r"retrievers.\1.\2_proj."),
)
_MEMORY = re.compile(r"^(memory|ltm(?:_keys|_ages|_recall_frequencies)?\.\d+)$")
_EXTRA_KEYS = [
    "num_tokens",
    "num_blocks",
    "num_ltm_blocks",
    "ltm_initial_size",
    "add_bos_embedding",
    "drop_memory_per_layer",
    "add_decoder_lora",
    "lora_config",
    "add_selector",
    "selector_hidden_dim",
    "num_selector_layers",
    "map_from_hidden_states",
    "add_encoder_retriever",
    "detach_hidden_state",
    "selector_layers",
    "update_ltm_mode",
    "update_ltm_frequency",
    "initial_rf_when_moving_stm_to_ltm",
    "decay_frequency",
    "num_memory_tokens",
    "max_length",
    "max_seq_length",
    "attn_implementation",
    "auto_map",
    "architectures",
]


def is_published(config: dict[str, Any]) -> bool:
    """Whether a config.json is of the authors' layout."""
    return "num_blocks" in config and "num_tokens" in config


def convert_config(config: dict[str, Any]) -> MPlusConfig:
    """Ours from theirs. Eviction and fill follow the published code, which is what those weights were trained with.

    Raises:
        CheckpointError: for variants that the published inference code supports and we do not.
    """
    _refuse_unsupported(config)
    text = {k: v for k, v in config.items() if k not in _EXTRA_KEYS}
    text["model_type"] = "llama"
    lora, blocks = config["lora_config"], config.get("num_ltm_blocks") or 0
    size = config["num_tokens"]
    retrieval = blocks * size if config.get("add_selector") else 0
    merge_every = config.get("update_ltm_frequency", 60)
    lifetime = config.get("initial_rf_when_moving_stm_to_ltm", 10) / config.get("decay_frequency", 1)
    dtype = config.get("torch_dtype") or config.get("dtype") or "float32"
    return MPlusConfig(
        text_config=text,
        memory_tokens_per_write=size,
        short_term_size=(config["num_blocks"] - blocks) * size,
        # The published rule has no cap; this is the steady state it implies, for estimates and progress displays.
        long_term_capacity=max(int(lifetime * merge_every * size), retrieval) if retrieval else 0,
        retrieval_budget=retrieval or 1,
        retriever_size=config.get("selector_hidden_dim", 256),
        retriever_layers=config.get("num_selector_layers", 2),
        retriever_score="mean_sigmoid",
        write_query=bool(config.get("add_encoder_retriever")),
        eviction="recall_frequency",
        fill_rule="tile",
        merge_every=merge_every,
        initial_recall_frequency=config.get("initial_rf_when_moving_stm_to_ltm", 10),
        recall_decay=config.get("decay_frequency", 1),
        lora={"r": lora["r"], "alpha": lora["lora_alpha"], "dropout": lora["lora_dropout"]}
        | {"target_modules": sorted(lora["target_modules"])},
        rope_frequency_dtype="bfloat16" if dtype == "bfloat16" else "float32",
        dtype=dtype,
    )


def _refuse_unsupported(config: dict[str, Any]) -> None:
    problems = [f"{key} is not true" for key in ("add_bos_embedding", "add_decoder_lora") if not config.get(key)]
    if not config.get("lora_config"):
        problems.append("lora_config is missing")
    if config.get("selector_layers") is not None:
        problems.append("selector_layers restricts the retriever to some layers")
    if config.get("update_ltm_mode", "immediate") != "immediate":
        problems.append(f"update_ltm_mode is {config['update_ltm_mode']!r}, not 'immediate'")
    if config.get("model_type", "llama") not in ("llama", "memoryllm"):
        problems.append(f"model_type is {config['model_type']!r}, not 'llama'")
    if problems:
        raise CheckpointError(
            "This published checkpoint is of a variant that is not supported: " + "; ".join(problems) + ".",
            "Supported: M+ (YuWangX/mplus-8b) and MemoryLLM-8B (YuWangX/memoryllm-8b, memoryllm-8b-chat).",
        )


def convert_name(name: str) -> str:
    """Our name of one of their parameters."""
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def is_memory(name: str) -> bool:
    """Whether a tensor is part of the memory a checkpoint carries."""
    return bool(_MEMORY.match(name))


def convert_memory(tensors: dict[str, torch.Tensor], config: MPlusConfig) -> dict[str, torch.Tensor]:
    """The carried memory in our form (see `loading.INITIAL_MEMORY`).

    Short-term ages are not stored by the authors: rows are in order, so the last one has age 0. Ages of long-term
    tokens become creation indices -1 - age.

    Raises:
        CheckpointError: naming what is missing.
    """
    layers = config.text_config.num_hidden_layers
    kinds = {"values": "ltm", "keys": "ltm_keys", "created": "ltm_ages", "recall_frequency": "ltm_recall_frequencies"}
    wanted = ["memory"]
    if config.has_long_term_memory:
        wanted += [f"{prefix}.{layer}" for prefix in kinds.values() for layer in range(layers)]
    missing, extra = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or extra:
        raise CheckpointError(
            f"The memory in this checkpoint does not fit its config.json. Missing: {missing}; unexpected: {extra}."
        )
    short = tensors["memory"]
    count = short.shape[1]
    out = {"short_term.values": short, "short_term.created": torch.arange(-count, 0).expand(layers, -1).contiguous()}
    if config.has_long_term_memory:
        for ours, theirs in kinds.items():
            stacked = torch.stack([tensors[f"{theirs}.{layer}"] for layer in range(layers)])
            if ours == "created":
                stacked = _created(stacked, count)
            out[f"long_term.{ours}"] = stacked.float() if ours == "recall_frequency" else stacked
        config.initial_long_term_size = out["long_term.created"].shape[1]
    config.initial_short_term_size = count
    return out


def _created(ages: torch.Tensor, short_term: int) -> torch.Tensor:
    """Creation indices of long-term tokens from ages [L, m]: -1 - age, unique, and before all of short-term memory.

    Ages saved in bfloat16 tie above 256, and the released code starts short-term ages at 0 after loading; where either
    makes two tokens of a layer the same, their order alone is kept.
    """
    created = -1 - ages.float().round().long()
    unique = all(len(row.unique()) == len(row) for row in created)
    if unique and (created.numel() == 0 or int(created.max()) < -short_term):
        return created
    return created.argsort(dim=-1, stable=True).argsort(dim=-1) - created.shape[1] - short_term
