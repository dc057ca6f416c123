"""A model prepared for inference: adapters merged into copies of the weights, and kernels for few rows."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from mplus_cli.core import linear as linear_module
from mplus_cli.core.adapters import READ, WRITE, lora_parameters
from mplus_cli.core.linear import FEW_ROWS, LARGE, linear
from tests.core.helpers import filled_memory, random_ids, tiny_model


@pytest.fixture
def model():
    return tiny_model(seed=3)


def replaced(model) -> bool:
    return any("forward" in vars(layer) for layer in model.adapters.layers)


@torch.no_grad()
def test_a_prepared_model_writes_reads_and_generates_the_same(model):
    prepared = copy.deepcopy(model).prepare_for_inference(READ, WRITE)
    memories = [filled_memory(m, 9) for m in (model, prepared)]
    torch.testing.assert_close(memories[0].short_term.values, memories[1].short_term.values, atol=1e-5, rtol=1e-4)
    read = [m(random_ids(1, 7), memory=memory).logits for m, memory in zip((model, prepared), memories, strict=True)]
    torch.testing.assert_close(*read, atol=1e-5, rtol=1e-4)
    assert replaced(prepared) and not replaced(model)


@torch.no_grad()
def test_switching_back_is_bit_exact(model):
    memory = filled_memory(model, 5)
    before = model(random_ids(1, 7), memory=memory).logits
    weights = {name: p.clone() for name, p in model.named_parameters()}
    model.adapters.merge(READ)
    merged = model(random_ids(1, 7), memory=memory).logits
    model.adapters.merge()
    assert torch.equal(model(random_ids(1, 7), memory=memory).logits, before) and not replaced(model)
    assert not torch.equal(merged, before)  # another order of operations: it did run merged
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_only_the_merged_adapter_is_replaced_and_only_without_gradient(model):
    model.adapters.merge(READ)
    with torch.no_grad():
        model(random_ids(1, 4))
        assert replaced(model)
        model.write(random_ids(1, 8), None)
        assert not replaced(model)
        model(random_ids(1, 4))
    model(random_ids(1, 4)).logits.sum().backward()
    assert not replaced(model)
    assert all(p.grad is not None for p in lora_parameters(model, READ))


@torch.no_grad()
def test_changed_weights_are_merged_anew(model):
    model.adapters.merge(READ)
    model(random_ids(1, 4))
    for parameter in lora_parameters(model, READ):
        parameter.mul_(3)
    changed = model(random_ids(1, 4)).logits
    model.adapters.merge()
    torch.testing.assert_close(changed, model(random_ids(1, 4)).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_block_merges_and_returns_to_what_was(model):
    model.adapters.merge(READ)
    expected = model.write(random_ids(1, 8), None)
    with model.adapters.merging(WRITE):
        torch.testing.assert_close(model.write(random_ids(1, 8), None), expected, atol=1e-5, rtol=1e-4)
        assert replaced(model)
    assert torch.equal(model.write(random_ids(1, 8), None), expected) and not replaced(model)
    model(random_ids(1, 4))
    assert replaced(model)


@torch.no_grad()
def test_adapters_are_not_merged_where_that_would_change_them():
    rounded, dropping = tiny_model(seed=3).bfloat16(), tiny_model(seed=3)
    for layer in dropping.adapters.layers:
        layer.lora_dropout["read"] = torch.nn.Dropout(0.1)
    for model in (rounded, dropping):
        model.prepare_for_inference(READ)
        model(random_ids(1, 4))
        assert not replaced(model)


@torch.no_grad()
def test_a_prepared_model_that_is_moved_to_bfloat16_is_no_longer_merged(model):
    model.prepare_for_inference(READ)
    model(random_ids(1, 4))
    assert replaced(model)
    model.bfloat16()(random_ids(1, 4))
    assert not replaced(model)
    model.float()(random_ids(1, 4))
    assert replaced(model)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("bias", [False, True])
def test_the_kernel_for_few_rows_agrees(rows, bias, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    weight = torch.randn(LARGE // 256, 256)
    x, b = torch.randn(1, rows, 256), torch.randn(len(weight)) if bias else None
    called = []
    if linear_module._ONEDNN is not None:
        kernel = linear_module._ONEDNN
        monkeypatch.setattr(linear_module, "_ONEDNN", lambda *a: called.append(1) or kernel(*a))
    torch.testing.assert_close(linear(x, weight, b), F.linear(x, weight, b), atol=1e-4, rtol=1e-4)
    assert bool(called) == (rows <= FEW_ROWS and linear_module._ONEDNN is not None)


def test_a_prepared_model_still_trains(model):
    model.prepare_for_inference(READ, WRITE)
    model(random_ids(1, 6), labels=random_ids(1, 6)).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora_parameters(model, READ)[1::2])


@torch.inference_mode()
def test_a_model_made_in_inference_mode_can_be_prepared():
    model = tiny_model(seed=3).prepare_for_inference(READ)
    assert model(random_ids(1, 4)).logits.isfinite().all() and replaced(model)
