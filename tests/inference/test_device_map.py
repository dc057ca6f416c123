"""Layers over several devices: what users may name, how layers are shared out, and when writes become a pipeline."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.errors import UsageError
from mplus_cli.inference import device_map
from mplus_cli.inference.device_map import DeviceMap, parse_device_map, spans_text, spread, write_stages
from mplus_cli.inference.models import load_for_state, load_model
from tests.fixtures import tiny_model

CPU = torch.device("cpu")
GPUS = tuple(torch.device("cuda", n) for n in range(2))


def test_names(two_gpus):
    assert parse_device_map("auto") == DeviceMap(GPUS)
    assert parse_device_map("cuda:0, cuda:1") == DeviceMap(GPUS)
    assert parse_device_map("cuda:1=20,cuda:0=12") == DeviceMap(GPUS[::-1], (20, 12))
    assert parse_device_map("cpu=1,cpu=2") == DeviceMap((CPU, CPU), (1, 2))


def test_auto_on_one_device_is_that_device(monkeypatch, model_folder):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse_device_map("auto") is None
    loaded = load_model(str(model_folder), device_map="auto")
    assert len(loaded.model.spans) == 1 and "one device, no layers to spread" in str(loaded.placement)


@pytest.mark.parametrize(
    ("text", "device", "message"),
    [
        ("auto", "cpu", "contradict"),
        ("", None, "no list of devices"),
        ("cpu,,cpu", None, "no list of devices"),
        ("cpu=x", None, "no list of devices"),
        ("cpu=0,cpu=3", None, "no list of devices"),
        ("cpu=1,cpu", None, "of every device, or of none"),
        ("gpu,cpu", None, "unknown --device-map 'gpu'"),
        ("cuda:0,cuda:5", None, "only 2 GPUs"),
    ],
)
def test_refusals(two_gpus, text, device, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_device_map(text, device)
    assert caught.value.hint


def test_layers_are_shared_out_by_free_memory(two_gpus, monkeypatch):
    model = tiny_model()
    one, rest = device_map.layer_bytes(model)
    free = {0: (one + rest) * 10 // 9 + 20, 1: 10**9}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 0))
    assert spans_text(spread(model, DeviceMap(GPUS))) == "1 layers on cuda:0, 2 on cuda:1"
    assert spans_text(spread(model, DeviceMap(GPUS, (2, 1)))) == "2 layers on cuda:0, 1 on cuda:1"
    free[1] = one
    with pytest.raises(UsageError, match="3 layers .* do not fit on cuda:0, cuda:1: 1 do"):
        spread(model, DeviceMap(GPUS))
    with pytest.raises(UsageError, match="places 4 layers; the model has 3"):
        spread(model, DeviceMap(GPUS, (2, 2)))


def test_a_loaded_model_lies_where_it_was_asked_to(model_folder, tmp_path):
    whole = load_model(str(model_folder), "cpu").model
    loaded = load_model(str(model_folder), device_map="cpu=1,cpu=2")
    assert [(span.first, span.end) for span in loaded.model.spans] == [(0, 1), (1, 3)]
    assert "1 layers on cpu, 2 on cpu" in str(loaded.placement)
    memory = whole.new_memory()
    with MemoryState.create(tmp_path / "m.pt", whole, memory) as state:
        state.commit(memory)
    with MemoryState.open(tmp_path / "m.pt") as state:  # the same model, wherever it lies
        memory = state.load_memory(load_for_state(state, device_map="cpu,cpu").model)
    assert [tensor.shape[1] for tensor in memory.short_term.parts] == [2, 1]
    with pytest.raises(UsageError, match="one device"):
        load_model(str(model_folder), quantize="int8", device_map="cpu,cpu")


def test_writes_are_a_pipeline_on_several_devices_or_where_asked_for():
    model = tiny_model()
    assert (write_stages(model, None), write_stages(model, True), write_stages(model, False)) == (1, 2, 1)
    model.spans = spread(model, DeviceMap((CPU,) * 3))
    assert (write_stages(model, None), write_stages(model, True), write_stages(model, False)) == (3, 3, 1)
