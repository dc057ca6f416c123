"""What tells one model from another, so that a memory is never read by weights that did not write it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM

SAMPLE = 1024  # elements per tensor
# What decides the computation. Whole Hugging Face configurations differ between library versions.
_MEMORY_FIELDS = [
    "memory_tokens_per_write",
    "short_term_size",
    "long_term_capacity",
    "retrieval_budget",
    "retriever_size",
    "retriever_layers",
    "retriever_score",
    "eviction",
    "fill_rule",
    "merge_every",
    "initial_recall_frequency",
    "recall_decay",
    "lora",
    "rope_frequency_dtype",
]
_TEXT_FIELDS = [
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
]


def model_fingerprint(model: MPlusForCausalLM) -> dict[str, str]:
    """sha256 of the configuration and of a sample of every weight, plus the name the model was loaded by.

    Of a quantized model also `quantize`, and its weights count as others than those it was made of.

    Up to 1,024 evenly spaced elements of every tensor are taken, in bfloat16, so that the value does not depend on
    dtype or device of loading and an 8B model is done in well under a second.
    """
    config, text = model.config, model.config.text_config
    fields = {name: getattr(config, name) for name in _MEMORY_FIELDS}
    fields |= {f"text.{name}": getattr(text, name, None) for name in _TEXT_FIELDS}
    named = {
        "config_sha256": hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest(),
        "name": str(model.name_or_path or ""),
    }
    if model.quantized is not None:
        # Not of the codes: devices round them differently.
        made_of = hashlib.sha256(f"{model.plain_weights_sha256} {model.quantized}".encode())
        return named | {"weights_sha256": made_of.hexdigest(), "quantize": model.quantized}
    weights = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].to(torch.bfloat16).cpu()
        weights.update(f"{key}{tuple(tensor.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return named | {"weights_sha256": weights.hexdigest()}
