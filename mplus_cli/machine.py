"""Where a run takes place and what it takes: versions, machine, memory. Uses torch only where it is loaded already."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mplus_cli import __version__

if TYPE_CHECKING:
    import torch

# What can change the numbers a model gives.
MODEL_PACKAGES = (
    *("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy"),
    *("deepspeed", "rank-bm25", "kvpress", "bitsandbytes"),
)


def versions(*packages: str) -> dict[str, str]:
    """Of mplus, Python, those of the packages that are installed, and CUDA where torch has it."""
    found = {"mplus": __version__, "python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in packages and torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def machine() -> dict[str, Any]:
    """Processor, memory, GPUs; no names of hosts or users."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": host_memory(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """Bytes of main memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def resident_memory() -> int:
    """Bytes of main memory that this process holds now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


def most_resident_memory() -> int:
    """Most bytes of main memory that this process has held; 0 where the system does not say."""
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


def peak_bytes(device: torch.device) -> int:
    """Most memory this process has held: of the GPU as torch allocates it, or of the machine."""
    if device.type == "cuda":
        return sys.modules["torch"].cuda.max_memory_allocated(device)
    return most_resident_memory()


class PeakMemory:
    """Most memory held at once since this was made: of the GPU as torch allocates it, of the process in main memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            sys.modules["torch"].cuda.reset_peak_memory_stats(device)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the high-water mark

    def bytes(self) -> dict[str, int]:
        """`gpu` (0 without one) and `host`."""
        gpu = peak_bytes(self.device) if self.device.type == "cuda" else 0
        return {"gpu": gpu, "host": most_resident_memory()}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
