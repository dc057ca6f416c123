"""Quantized backbones: close to the model they are made of, smaller, and never mistaken for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mplus_cli.core.adapters import READ, WRITE
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.errors import CheckpointError, MissingExtraError, StateError, UsageError
from mplus_cli.evaluation.systems.base_model import backbone
from mplus_cli.inference.models import load_model
from mplus_cli.inference.quantize import KINDS, check_kind, quantize_backbone
from tests.core.helpers import filled_memory, random_ids, tiny_config

QUESTION = random_ids(1, 9, seed=99)


@pytest.fixture(scope="module")
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


def wide_model(intermediate: int = 128, **overrides) -> MPlusForCausalLM:
    """Matrices of whole blocks of 64 weights; initialised as models are."""
    torch.manual_seed(0)
    config = tiny_config(**overrides)
    config.text_config.intermediate_size = intermediate
    model = MPlusForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith(("bos_embedding", "positional_emb")):
                parameter.normal_(0, 0.1)
    return model.eval()


def logits(model: MPlusForCausalLM, memory=None) -> torch.Tensor:
    with torch.inference_mode():
        return model(QUESTION, memory=memory or filled_memory(model, 8)).logits


def loaded(folder: Path, kind: str | None) -> MPlusForCausalLM:
    model = MPlusForCausalLM.from_pretrained(folder)
    if kind is not None:
        quantize_backbone(model, kind, "cpu")
    return model


def stored(model: MPlusForCausalLM) -> int:
    """Bytes of the matrices of attention and MLP, scales included."""
    parts = [
        tensor
        for name, tensor in model.model.layers.state_dict().items()
        if "lora_" not in name and "norm" not in name and isinstance(tensor, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.itemsize for tensor in parts)


@pytest.mark.parametrize(("kind", "share", "tolerance"), [("int8", 0.30, 0.03), ("int4", 0.20, 0.30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_writing_and_reading_stay_close_and_weights_are_smaller(bitsandbytes, kind, share, tolerance, dtype):
    exact, small = (wide_model().to(dtype) for _ in range(2))
    quantize_backbone(small, kind, "cpu")
    one, other = logits(exact).float(), logits(small).float()
    assert small.dtype == dtype and other.isfinite().all()
    error = float((one - other).norm() / one.norm())
    assert 0 < error < tolerance + (0.02 if dtype == torch.bfloat16 else 0)
    assert stored(small) < share * stored(exact) * 4 / dtype.itemsize


def test_adapters_stay_as_they_are_and_are_not_merged(bitsandbytes):
    model = wide_model()
    quantize_backbone(model, "int8", "cpu")
    lora = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
    assert lora and all(parameter.dtype == torch.float32 for parameter in lora)
    assert not any(type(m) is nn.Linear for n, m in model.model.layers.named_modules() if "lora_" not in n)
    before = logits(model)
    model.prepare_for_inference(READ, WRITE)
    assert torch.equal(logits(model), before) and not model.adapters.merged
    with torch.no_grad():
        for parameter in lora:
            parameter.zero_()
    assert not torch.allclose(logits(model), before, atol=1e-2)


def test_a_quantized_model_is_another_model(bitsandbytes, tmp_path):
    wide_model().save_pretrained(tmp_path / "model")
    load = {kind: loaded(tmp_path / "model", kind) for kind in (None, "int8", "int4")}
    prints = {kind: model.fingerprint() for kind, model in load.items()}
    assert len({p["weights_sha256"] for p in prints.values()}) == 3
    assert "quantize" not in prints[None] and prints["int8"]["quantize"] == "int8"
    assert loaded(tmp_path / "model", "int8").fingerprint() == prints["int8"]
    path, model = tmp_path / "mem.pt", load["int8"]
    with MemoryState.create(path, model, memory := model.new_memory(seed=1)) as state:
        for step in range(8):
            model.inject(random_ids(1, 16, seed=step), memory)
        state.commit(memory)
    with MemoryState.open(path) as state:
        assert state.quantize == "int8"
        again = state.load_memory(loaded(tmp_path / "model", "int8"))
        assert torch.allclose(logits(model, again), logits(model, memory), atol=1e-4)
        with pytest.raises(StateError, match="was quantized to int8; this one is not quantized") as error:
            state.load_memory(load[None])
        assert "Add --quantize int8" in str(error.value.hint)
        with pytest.raises(StateError, match="was quantized to int8; this one is quantized to int4"):
            state.load_memory(load["int4"])
    with MemoryState.create(tmp_path / "plain.pt", load[None], memory := load[None].new_memory()) as state:
        state.commit(memory)
        with pytest.raises(StateError, match="was not quantized; this one is quantized to int8") as error:
            state.load_memory(model)
        assert "Leave out --quantize" in str(error.value.hint)


def test_a_quantized_model_is_not_saved_nor_quantized_twice(bitsandbytes, tmp_path):
    model = wide_model()
    quantize_backbone(model, "int4", "cpu")
    with pytest.raises(CheckpointError, match="not saved"):
        model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="already"):
        quantize_backbone(model, "int8", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_adapters_or_long_term_memory(bitsandbytes):
    for overrides in ({"lora": False}, {"long_term_capacity": 0, "retrieval_budget": 0}):
        exact, small = (wide_model(**overrides) for _ in range(2))
        quantize_backbone(small, "int8", "cpu")
        one, other = logits(exact), logits(small.prepare_for_inference(READ, WRITE))
        assert float((one - other).norm() / one.norm()) < 0.03


def test_systems_on_the_bare_backbone_are_refused(bitsandbytes):
    model = wide_model()
    quantize_backbone(model, "int8", "cpu")
    with pytest.raises(UsageError, match="--quantize int8"):
        backbone(model)


def test_matrices_that_int4_does_not_take_are_refused(bitsandbytes):
    model = wide_model(96)
    with pytest.raises(UsageError, match="down_proj") as error:
        quantize_backbone(model, "int4", "cpu")
    assert "int8" in str(error.value.hint) and model.quantized is None
    quantize_backbone(model, "int8", "cpu")


# -- refusals, with or without the library -----------------------------------------------------------------------------


def test_without_the_library_the_pip_line_is_given(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for kind in KINDS:
        with pytest.raises(MissingExtraError, match="bitsandbytes") as error:
            load_model(str(tmp_path / "nothing"), quantize=kind)
        assert error.value.hint == 'pip install "mplus[quantize]"' and error.value.exit_code == 2


def test_unknown_kinds_and_devices_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="int3") as error:
        check_kind("int3")
    assert "int8, int4" in str(error.value.hint)
    monkeypatch.setattr("mplus_cli.inference.quantize._library", lambda: None)
    with pytest.raises(UsageError, match="mps"):
        quantize_backbone(wide_model(), "int8", "mps")
