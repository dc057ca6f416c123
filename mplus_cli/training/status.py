"""The status line of a run, made from a line of its journal, and how much of the machine's speed is used."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mplus_cli.console import size

# Dense bfloat16 operations per second, from the manufacturers' data sheets; the first name that fits counts.
PEAKS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10": 125e12,
    "RTX 6000 Ada": 364e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Operations per second that one device could do at best in bfloat16; None where that is not known (CPUs too)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


class WorkCounter:
    """Operations done in the matrices of the decoder layers, counted from the tokens that enter them.

    A token costs 2 operations per parameter forward; when it carries a gradient, 2 more for that of the activations and
    2 for that of the parameters that train. Attention itself and the memory rows, of which only keys and values are
    made, are left out, so the utilisation shown is a lower bound.
    """

    def __init__(self, embedding: nn.Module, layers: nn.Module) -> None:
        self.operations = 0.0
        matrices = [p for p in layers.parameters() if p.dim() > 1]
        self._forward = 2.0 * sum(p.numel() for p in matrices)
        self._backward = self._forward + 2.0 * sum(p.numel() for p in matrices if p.requires_grad)
        # Counted where ids become rows: recomputed layers (gradient checkpointing) are no useful work.
        embedding.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple, rows: torch.Tensor) -> None:
        cost = self._forward + (self._backward if torch.is_grad_enabled() else 0.0)
        self.operations += cost * rows.shape[0] * rows.shape[1]

    def take(self) -> float:
        """Operations since the last call."""
        done, self.operations = self.operations, 0.0
        return done


def status_line(line: dict[str, Any], steps: int) -> str:
    """One line for people: step, share, loss by task, recall, learning rate, speed, memory."""
    tasks = ", ".join(f"{name} {figures['loss']:.3f}" for name, figures in line["tasks"].items())
    parts = [f"step {line['step']:,}/{steps:,}", f"loss {line['loss']:.4f} ({tasks})"]
    recall = line["parts"].get("recall")
    if recall is not None:
        chance = line["parts"].get("recall_over_chance")
        parts.append(f"recall {recall:.0%}" + (f" = {chance:.1f} x chance" if chance is not None else ""))
    parts.append("lr " + "/".join(f"{rate:.2g}" for rate in dict.fromkeys(line["rates"].values())))
    parts.append(f"{line['tokens_per_second']:,.0f} tokens/s")
    if line.get("mfu") is not None and math.isfinite(line["mfu"]):
        parts.append(f"MFU {line['mfu']:.0%}")
    parts.append(size(line["peak_bytes"]))
    return ", ".join(parts)
