"""GPUs to plan for without having one: `mplus profile --estimate --gpu H100`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.registry import did_you_mean
from mplus_cli.inference.devices import Placement, choose_placement
from mplus_cli.training.status import PEAKS

# Bytes of memory, and bytes per second that it can be read at, from the manufacturers' data sheets.
MEMORY: dict[str, tuple[float, float]] = {
    "B200": (180e9, 8.0e12),
    "H200": (141e9, 4.8e12),
    "H100": (80e9, 3.35e12),
    "H100 PCIe": (80e9, 2.0e12),
    "A100": (80e9, 2.0e12),
    "L40S": (48e9, 0.864e12),
    "A40": (48e9, 0.696e12),
    "A10": (24e9, 0.6e12),
    "L4": (24e9, 0.3e12),
    "RTX 4090": (24e9, 1.008e12),
    "RTX 3090": (24e9, 0.936e12),
    "V100": (32e9, 0.9e12),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet. `flops` and `bandwidth` are per second, dense bfloat16 and bytes."""

    name: str
    memory: float
    bandwidth: float
    flops: float

    def placement(self, dtype: str | None) -> Placement:
        """Where a model would be on it: bfloat16 unless another dtype is named."""
        return Placement(torch.device("cuda"), choose_placement("cpu", dtype or "bfloat16").dtype, f"as on {self.name}")


def find_gpu(name: str) -> Gpu:
    """The GPU of this name.

    Raises:
        UsageError: its data sheet is not known here.
    """
    known = {key.lower(): key for key in MEMORY}
    key = known.get(name.lower())
    if key is None:
        raise UsageError(f"--gpu {name}: not known{did_you_mean(name, MEMORY)}", hint=f"one of: {', '.join(MEMORY)}")
    return Gpu(key, *MEMORY[key], PEAKS[key])
