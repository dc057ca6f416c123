"""Choosing a device and a dtype: what is asked for is taken or refused, and the choice comes with its reason."""

import pytest
import torch

from mplus_cli.errors import UsageError
from mplus_cli.inference import devices
from mplus_cli.inference.devices import choose_placement


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_default_without_gpu(no_gpu):
    placement = choose_placement()
    assert (placement.device.type, placement.dtype) == ("cpu", torch.float32)
    assert str(placement) == "cpu, float32 (no GPU found; float32 is exact)"


def test_default_with_gpu(two_gpus):
    placement = choose_placement()
    assert (placement.device, placement.dtype) == (torch.device("cuda", 0), torch.bfloat16)
    assert "H9" in placement.reason


def test_large_models_do_not_get_float32_on_a_small_machine(no_gpu, monkeypatch):
    monkeypatch.setattr(devices, "host_memory", lambda: 32 << 30)
    assert choose_placement(weight_count=8_000_000_000).dtype == torch.bfloat16
    assert choose_placement(weight_count=1_000_000_000).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("float16", torch.float16), ("torch.float32", torch.float32)]
)
def test_dtype_as_asked(no_gpu, name, dtype):
    assert choose_placement("cpu", name).dtype == dtype


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("gpu", None, "unknown --device 'gpu'"),
        ("meta", None, "unknown --device 'meta'"),
        ("cpu", "int8", "unknown --dtype 'int8'"),
        ("cuda", None, "--device cuda: "),
        ("mps", None, "no Apple GPU"),
    ],
)
def test_refusals(no_gpu, device, dtype, message):
    with pytest.raises(UsageError, match=message) as caught:
        choose_placement(device, dtype)
    assert caught.value.hint


def test_gpu_number_out_of_range(two_gpus):
    assert choose_placement("cuda:1").device == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="only 2 GPUs"):
        choose_placement("cuda:2")


def test_small_models_run_on_one_thread_unless_told_otherwise(monkeypatch):
    counts: list[int] = []
    monkeypatch.setattr(devices.torch, "set_num_threads", counts.append)
    cpu = devices.Placement(torch.device("cpu"), torch.float32, "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for weights in (0, 1_000_000, 8_000_000_000):
        devices.limit_threads(cpu, weights)
    assert counts == [1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    devices.limit_threads(cpu, 1_000_000)
    assert counts == [1]
