"""Keep freed memory in the process: on a CPU the C library otherwise costs a third of a forward pass.

Every layer allocates and frees buffers of a few hundred kilobytes. glibc gives such memory back to the system at once
and has it zeroed page by page at the next layer. Measured with `benchmarks/core.py`: 60 ms instead of 90 ms per write.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, from malloc.h
KEEP_BYTES = 1 << 30
LARGEST_ON_HEAP = 1 << 25  # glibc's own upper limit; larger blocks are mapped and do go back to the system


def keep_freed_memory() -> bool:
    """Tell the C library, for this process. Returns whether it understood; where it is not glibc nothing happens."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, KEEP_BYTES) and mallopt(_MMAP_THRESHOLD, LARGEST_ON_HEAP))
