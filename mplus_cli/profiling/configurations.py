"""Models to profile without their weights: known configurations by name, or a folder that has a config.json alone.

Cost does not depend on the values of weights, so random ones tell what a model would cost before it is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.published_layout import convert_config, is_published
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.registry import did_you_mean

_LLAMA_3: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_LLAMA_32 = _LLAMA_3 | {
    "rope_parameters": _LLAMA_3["rope_parameters"] | {"factor": 32.0},
    "tie_word_embeddings": True,
    "intermediate_size": 8192,
}
_SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "max_position_embeddings": 131_072,
    "bos_token_id": 1,
}
# The published memory of the 8B model (M+ section 4.1), with 5,120 long-term tokens to begin with.
_PUBLISHED: dict[str, Any] = {
    "memory_tokens_per_write": 256,
    "short_term_size": 10_240,
    "long_term_capacity": 150_000,
    "retrieval_budget": 2_560,
    "retriever_size": 256,
    "retriever_score": "mean_sigmoid",
    "chunk_size": 512,
    "initial_short_term_size": 10_240,
    "initial_long_term_size": 5_120,
    "lora": {"r": 16, "alpha": 32},
}
_SMALLER: dict[str, Any] = {
    "memory_tokens_per_write": 64,
    "short_term_size": 2_560,
    "long_term_capacity": 150_000,
    "retrieval_budget": 640,
    "retriever_size": 64,
    "retriever_score": "mean_sigmoid",
    "chunk_size": 128,
    "lora": {"r": 8, "alpha": 16},
}


def _llama(base: dict[str, Any], width: int, layers: int, heads: int, **rest: int) -> dict[str, Any]:
    return base | {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads} | rest


# name -> (backbone, memory). Small ones have random vocabularies of 32,000 and are for trying things out on a CPU.
CONFIGURATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama-3.1-8b": (_llama(_LLAMA_3, 4096, 32, 32, intermediate_size=14_336), _PUBLISHED),
    "llama-3.2-3b": (_llama(_LLAMA_32, 3072, 28, 24), _PUBLISHED),
    "llama-3.2-1b": (_llama(_LLAMA_32, 2048, 16, 32, head_dim=64), _PUBLISHED | {"retriever_size": 128}),
    "100m": (_llama(_SMALL, 768, 10, 12, num_key_value_heads=4, intermediate_size=2048), _SMALLER),
    "56m": (
        _llama(_SMALL, 512, 8, 8, num_key_value_heads=4, intermediate_size=1376),
        _SMALLER | {"retriever_size": 32},
    ),
    "1m": (
        _llama(_SMALL, 128, 4, 4, num_key_value_heads=2, intermediate_size=256, vocab_size=1024),
        _SMALLER | {"memory_tokens_per_write": 32, "short_term_size": 256, "retrieval_budget": 128, "chunk_size": 64},
    ),
}


def known_configuration(name: str) -> MPlusConfig:
    """The configuration that `--random-weights` names: a row of the table, or a folder or file with a config.json.

    Raises:
        UsageError: neither, or a config.json that is no model's.
    """
    if name in CONFIGURATIONS:
        backbone, memory = CONFIGURATIONS[name]
        backbone = dict(backbone)
        return MPlusConfig(text_config=AutoConfig.for_model(backbone.pop("model_type"), **backbone), **memory)
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise UsageError(
            f"--random-weights {name}: no known configuration{did_you_mean(name, CONFIGURATIONS)} and no folder with a "
            "config.json",
            hint=f"one of: {', '.join(CONFIGURATIONS)}",
        )
    return configuration_of(path)


def configuration_of(path: Path) -> MPlusConfig:
    """A config.json of ours, of the published layout, or of a plain decoder, which then gets the published memory."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if is_published(raw):
            config = convert_config(raw)
            config.initial_short_term_size = config.short_term_size
            config.initial_long_term_size = raw.get("ltm_initial_size", 0)
            return config
        if raw.get("model_type") == MPlusConfig.model_type:
            return MPlusConfig.from_dict(raw)
        backbone: PretrainedConfig = AutoConfig.for_model(raw.pop("model_type"), **raw)
        return MPlusConfig(text_config=backbone, **_PUBLISHED)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{path} is not a model's configuration: {type(error).__name__}: {error}") from error


def random_model(config: MPlusConfig, device: torch.device, dtype: torch.dtype, seed: int = 0) -> MPlusForCausalLM:
    """The model of a configuration with random weights, and a full memory where its checkpoint would carry one."""
    torch.manual_seed(seed)
    model = built(lambda: MPlusForCausalLM(config), device, dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(config.text_config).to(device)  # float32, whatever the dtype
    model.round_rotary_frequencies()
    model.initial_memory = _initial_memory(config, dtype)
    return model.eval()


def built(make: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """What `make` builds, made in `dtype` on `device` from the start: no second copy, and nothing large in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return make().to(device=device, dtype=dtype).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _initial_memory(config: MPlusConfig, dtype: torch.dtype) -> dict[str, torch.Tensor] | None:
    """Random memory tokens in the number that the checkpoint carries; as `loading` would have read them."""
    short, long = config.initial_short_term_size, config.initial_long_term_size
    if not short:
        return None
    layers, width = config.text_config.num_hidden_layers, config.text_config.hidden_size
    long = long if config.has_long_term_memory else 0
    return {
        "short_term.values": torch.randn(layers, short, width, dtype=dtype),
        "short_term.created": torch.arange(-short, 0).expand(layers, -1),
        "long_term.values": torch.randn(layers, long, width, dtype=dtype),
        "long_term.keys": torch.randn(layers, long, config.retriever_size, dtype=dtype),
        "long_term.created": torch.arange(-short - long, -short).expand(layers, -1),
        "long_term.recall_frequency": torch.full((layers, long), config.initial_recall_frequency),
    }
