"""Backbone weights in 8 or 4 bits through bitsandbytes, so that a model runs where it would not fit. Not for training.

    int8   LLM.int8(): rows of 8-bit codes; input columns with large entries are multiplied in the model's dtype
    int4   NF4: blocks of 64 weights share a scale, and scales are stored in 8 bits themselves

The matrices of attention and MLP are stored so. Embeddings, head, norms, retrievers, both adapters and all that is
computed between stay in the model's dtype. Adapters are added to the result, never merged into the weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.errors import CheckpointError, MissingExtraError, UsageError

KINDS = ("int8", "int4")
BLOCK = 64  # weights that share a scale
SCALES = 256  # scales of int4 that share one themselves
OUTLIER = 6.0  # entries of an input from here on keep their precision (LLM.int8(), section 3.2)


def check_kind(kind: str) -> None:
    """Refuse an unknown kind, or a missing library, before anything slow is done.

    Raises:
        UsageError, MissingExtraError
    """
    if kind not in KINDS:
        raise UsageError(f"unknown --quantize {kind!r}", hint=f"one of: {', '.join(KINDS)}")
    _library()


def quantize_backbone(model: MPlusForCausalLM, kind: str, device: torch.device | str) -> None:
    """Put codes in the place of the backbone's matrices, one after the other, on the device where they will be used.

    The model is on the host and moves to the device afterwards, so that it never needs more of it than its new size.

    Raises:
        UsageError: unknown kind, a device without kernels, or matrices of a size that int4 does not take.
        CheckpointError: the model is quantized already.
        MissingExtraError: bitsandbytes is not installed.
    """
    check_kind(kind)
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--quantize does not run on {device.type}", hint="--device cpu or cuda")
    if model.quantized is not None:
        raise CheckpointError(f"This model is quantized to {model.quantized} already.")
    found = [
        (layer, name, part)
        for layer in model.model.layers
        for name, part in layer.named_modules()
        if type(part) is nn.Linear and ".lora_" not in name
    ]
    check_widths(kind, {name: part.in_features for _, name, part in found})
    model.plain_weights_sha256 = model.fingerprint()["weights_sha256"]
    library, dtype = _library(), model.dtype
    for layer, name, part in found:
        layer.set_submodule(name, _quantized(library, part, kind, dtype, device))
    model.quantized = kind


def check_widths(kind: str, widths: Mapping[str, int]) -> None:
    """Raises UsageError: int4 does not take matrices of these names and lengths of rows."""
    odd = next((name for name, width in widths.items() if kind == "int4" and width % BLOCK), None)
    if odd is not None:
        raise UsageError(
            f"int4 takes matrices whose rows are multiples of {BLOCK} long; {odd} is none.",
            "--quantize int8 takes all.",
        )


def quantized_bytes(kind: str, inputs: int, outputs: int) -> int:
    """Bytes of a matrix in codes, its scales included: one float32 per row, or a byte per block, blocks of which share
    another float32.
    """
    if kind == "int8":
        return outputs * (inputs + 4)
    blocks = inputs * outputs // BLOCK
    return inputs * outputs // 2 + blocks + 4 * -(-blocks // SCALES)


def _quantized(library: Any, part: nn.Linear, kind: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    weight, sizes, bias = part.weight.data, (part.in_features, part.out_features), part.bias is not None
    if kind == "int8":
        new = library.nn.Linear8bitLt(*sizes, bias, has_fp16_weights=False, threshold=OUTLIER, device="meta")
        new.weight = library.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        new = library.nn.Linear4bit(*sizes, bias, compute_dtype=dtype, quant_type="nf4", device="meta")
        new.weight = library.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    new.bias = part.bias
    return new.to(device).requires_grad_(False).eval()


def _library() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError("--quantize needs bitsandbytes", 'pip install "mplus[quantize]"') from error
    # It says so at every product; the products are what LLM.int8() defines.
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    return bitsandbytes
