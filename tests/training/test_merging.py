"""Adapters merged with gradient: the numbers and every gradient of the unmerged form; nothing left behind."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core.prefix import TokenPrefix
from mplus_cli.training import contexts
from mplus_cli.training.merging import merged_adapter
from mplus_cli.training.tasks.reading import read
from tests.training.helpers import tiny_memory_model, tiny_recipe


@pytest.fixture
def model():
    return tiny_memory_model(tiny_recipe(3)).requires_grad_()


def outcome(model, adapter: str, merge: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Hidden states of a read, and all gradients of a sum over them."""
    model.zero_grad()
    torch.manual_seed(1)
    ids, tokens = torch.randint(0, 256, (3, 9)), torch.randn(3, 2, 5, 32)
    hidden = read(model, ids, TokenPrefix(model, 3, tokens), adapter, recompute=not merge)
    (hidden * torch.randn(hidden.shape)).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapter", ["write", "read"])
def test_numbers_and_gradients_are_those_of_the_unmerged_form(model, adapter):
    """Checkpointed passes are not merged."""
    expected, gradients = outcome(model, adapter, merge=False)
    found, own = outcome(model, adapter, merge=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert own.keys() == gradients.keys() and any(f"lora_A.{adapter}" in name for name in own)
    for name in own:
        torch.testing.assert_close(own[name], gradients[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_merged_projection_is_one_product(model):
    layer = model.adapters.layers[0]
    rows = torch.randn(2, layer.in_features)
    before = layer(rows)
    with merged_adapter(model, "read"):
        names = []
        merged = layer(rows)
        grad = merged.grad_fn
        while grad is not None:
            names.append(type(grad).__name__)
            grad = grad.next_functions[0][0] if grad.next_functions else None
    assert "AddmmBackward0" in " ".join(names) or "Mm" in " ".join(names)
    torch.testing.assert_close(merged, before, rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(layer) for layer in model.adapters.layers)


def test_nothing_is_merged_where_that_would_change_the_numbers(model):
    dropping = tiny_memory_model(tiny_recipe(3))
    for layer in dropping.adapters.layers:
        layer.lora_dropout["write"] = torch.nn.Dropout(0.1)
    for one in (tiny_memory_model(tiny_recipe(3)).bfloat16(), dropping):
        with merged_adapter(one, "write"):
            assert not any("forward" in vars(layer) for layer in one.adapters.layers)
    with torch.no_grad(), merged_adapter(model, "write"):
        assert not any("forward" in vars(layer) for layer in model.adapters.layers)


def test_writes_with_gradient_run_merged(model, monkeypatch):
    seen = []
    write = model.write
    monkeypatch.setattr(
        model, "write", lambda *args: seen.append("forward" in vars(model.adapters.layers[0])) or write(*args)
    )
    contexts.write_with_gradient(model, model.new_memory(2), [[40] * 8, [41] * 8])
    contexts.write_with_gradient(model, model.new_memory(2), [[40] * 8, [41] * 8], recompute=True)
    assert seen == [True, False]
