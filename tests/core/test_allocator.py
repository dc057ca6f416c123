"""Freed memory stays in the process where the C library is glibc."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from mplus_cli.core.allocator import keep_freed_memory
torch.set_num_threads(1)
def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        [torch.empty(4_000_000).fill_(1) for _ in range(2)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
assert keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc knows mallopt")
def test_buffers_are_not_zeroed_again_at_every_allocation():
    """100 buffers of 16 MB would take 400,000 page faults if each came from the system."""
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 40_000
