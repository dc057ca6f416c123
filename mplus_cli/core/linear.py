"""Linear layers of inference: the CPU kernel that is fastest for a few rows, as in generating token by token."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

FEW_ROWS = 32
LARGE = 1 << 17  # weights from which on a second core outweighs the cost of choosing a kernel
# torch's own BLAS reads a large matrix for one row with one core; oneDNN with all, two to three times as fast.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`, to rounding. rows: [..., i]; weight: [o, i] -> [..., o]."""
    few = rows.numel() <= FEW_ROWS * weight.shape[1] and weight.numel() >= LARGE
    if few and _ONEDNN is not None and weight.is_cpu and weight.dtype == torch.float32 and _plain_inference():
        return _ONEDNN(rows, weight, bias, "none", [], "")
    return F.linear(rows, weight, bias)


def use_inference_kernels(model: nn.Module) -> None:
    """Give every plain linear layer of `model` the kernel choice of `linear`; with gradients they run as before."""
    for module in model.modules():
        if type(module) is nn.Linear:
            vars(module)["forward"] = partial(_forward, module)


def _forward(module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    return linear(rows, module.weight, module.bias)


def _plain_inference() -> bool:
    return not torch.is_grad_enabled() and torch.get_num_threads() > 1
