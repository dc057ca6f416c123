"""What tells one model from another, so that a memory is never read by weights that did not write it."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel

SAMPLE = 1024  # elements per tensor
_VOLATILE = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "_attn_implementation"}


def model_fingerprint(model: PreTrainedModel) -> dict[str, str]:
    """sha256 of the configuration and of a sample of every weight, plus the name the model was loaded by.

    Up to 1,024 evenly spaced elements of every tensor are taken, in bfloat16, so that the value does not depend on
    dtype or device of loading and an 8B model is done in well under a second.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in _VOLATILE}
    config["text_config"] = {k: v for k, v in config["text_config"].items() if k not in _VOLATILE}
    weights = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].to(torch.bfloat16).cpu()
        weights.update(f"{key}{tuple(tensor.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return {
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "weights_sha256": weights.hexdigest(),
        "name": str(model.name_or_path or ""),
    }
