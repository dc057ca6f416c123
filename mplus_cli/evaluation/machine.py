"""Where a run took place and what it took: versions, machine, peak memory."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mplus_cli import __version__
from mplus_cli.inference.devices import host_memory

PACKAGES = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "rank-bm25", "kvpress")


def versions() -> dict[str, str]:
    """Of everything that can change an answer."""
    found = {"mplus": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def machine() -> dict[str, Any]:
    """Processor, memory, GPUs; no names of hosts or users."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": host_memory(),
    }
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found


class PeakMemory:
    """Most memory held at once since this was made: of the GPU as torch allocates it, of the process in main memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the high-water mark

    def bytes(self) -> dict[str, int]:
        """`gpu` (0 without one) and `host`."""
        gpu = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return {"gpu": gpu, "host": _high_water_mark()}


def _high_water_mark() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
