"""GPUs that are not there."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H9")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
