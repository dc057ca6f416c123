"""What a run says of where it took place."""

from __future__ import annotations

import platform

import torch

from mplus_cli import __version__
from mplus_cli.machine import (
    PeakMemory,
    host_memory,
    machine,
    most_resident_memory,
    peak_bytes,
    resident_memory,
    versions,
)


def test_versions_are_those_of_what_is_installed():
    assert versions("torch", "no-such-package") == {
        "mplus": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def test_a_machine_is_described_without_names():
    found = machine()
    assert found["cores"] >= 1 and found["threads"] == torch.get_num_threads() and found["processor"]
    assert platform.node() not in str(found).split()


def test_memory_figures_fit_together():
    assert 10_000_000 < resident_memory() <= most_resident_memory() <= host_memory()
    assert peak_bytes(torch.device("cpu")) == most_resident_memory()


def test_peak_memory_counts_from_its_making():
    peak = PeakMemory(torch.device("cpu"))
    before = peak.bytes()["host"]
    held = bytearray(b"x" * 80_000_000)
    assert peak.bytes()["host"] >= before + 70_000_000 and peak.bytes()["gpu"] == 0
    del held
