"""Where a model runs and in which number format, chosen with a reason that can be shown."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from mplus_cli.errors import UsageError
from mplus_cli.machine import host_memory

SMALL_MODEL = 10_000_000  # parameters
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {
    "fp32": "float32",
    "f32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
}


@dataclass(frozen=True)
class Placement:
    """A device and dtype, and why these."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def __str__(self) -> str:
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')} ({self.reason})"


def choose_placement(device: str | None = None, dtype: str | None = None, weight_count: int = 0) -> Placement:
    """Choose device and dtype; what the user names is taken or refused, never replaced.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, `mps`; None for the best there is.
        dtype: a name of `DTYPES` or a common short form; None for what suits the device.
        weight_count: parameters of the model, 0 if unknown: float32 is not chosen where they would not fit.

    Raises:
        UsageError: an unknown name, or a device that is not there.
    """
    chosen, why = find_device(device)
    if dtype is not None:
        name = _SHORT.get(dtype.lower(), dtype.lower().removeprefix("torch."))
        if name not in DTYPES:
            raise UsageError(f"unknown --dtype {dtype!r}", hint=f"one of: {', '.join(DTYPES)}")
        return Placement(chosen, DTYPES[name], f"{why}; dtype as given")
    if chosen.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return Placement(chosen, torch.bfloat16, f"{why}; the GPU computes bfloat16")
        return Placement(chosen, torch.float32, f"{why}; the GPU has no bfloat16")
    memory = host_memory()
    if memory and weight_count * 4 > memory * 0.6:
        return Placement(chosen, torch.bfloat16, f"{why}; in float32 the weights would take most of its memory")
    return Placement(chosen, torch.float32, f"{why}; float32 is exact")


def find_device(name: str | None, option: str = "--device") -> tuple[torch.device, str]:
    """A device by name, or the best there is; and why this one.

    Raises:
        UsageError: `option` names none, or one that is not there.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", 0), f"GPU {torch.cuda.get_device_name(0)}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple GPU"
        return torch.device("cpu"), "no GPU found"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown {option} {name!r}", hint="one of: cpu, cuda, cuda:N, mps")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no NVIDIA GPU"
            raise UsageError(f"{option} {name}: {why}", hint=f"{option} cpu works everywhere")
        if device.index is not None and device.index >= count:
            raise UsageError(f"{option} {name}: there are only {count} GPUs", hint=f"the last is cuda:{count - 1}")
        device = torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"{option} {name}: torch finds no Apple GPU", hint=f"{option} cpu works everywhere")
    return device, "device as asked"


def limit_threads(placement: Placement, weight_count: int) -> None:
    """One thread for a small model on a CPU, unless OMP_NUM_THREADS says otherwise.

    Its products are too short to be shared out: two threads gain a few per cent on an idle machine, and waiting for
    each other on a busy one costs more than ten times (measured with the bundled model).
    """
    if placement.device.type == "cpu" and 0 < weight_count < SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
