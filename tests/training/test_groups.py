"""Parameter groups: every parameter in exactly one, and selecting trains exactly what is named."""

from __future__ import annotations

import pytest

from mplus_cli.errors import UsageError
from mplus_cli.training.groups import all_groups, select
from mplus_cli.training.recipe_checks import GROUPS
from tests.training.helpers import tiny_memory_model, tiny_recipe


@pytest.fixture
def model():
    trained = ["retriever", "write_retriever"]
    return tiny_memory_model(tiny_recipe(3, train=trained, loss={"retriever": "published", "write_side": True}))


def test_every_parameter_is_in_exactly_one_group(model):
    groups = all_groups(model)
    assert list(groups) == list(GROUPS)
    names = [name for group in groups.values() for name, _ in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_the_groups_hold_what_they_say(model):
    groups = {name: [n for n, _ in group] for name, group in all_groups(model).items()}
    layers, targets = 2, 6
    assert len(groups["write_adapter"]) == len(groups["read_adapter"]) == layers * targets * 2
    assert all(".write." in name and "lora_" in name for name in groups["write_adapter"])
    assert all("query_proj" in name or "key_proj" in name for name in groups["retriever"])
    assert len(groups["retriever"]) == layers * 2 * 2 and len(groups["write_retriever"]) == layers * 2
    assert groups["bos_embedding"] == ["bos_embedding"]
    assert "lm_head.weight" in groups["backbone"] and "model.embed_tokens.weight" in groups["backbone"]


def test_selecting_trains_exactly_the_named_groups(model):
    chosen = select(model, ["retriever", "bos_embedding"])
    assert list(chosen) == ["retriever", "bos_embedding"]
    named = {name for group in chosen.values() for name, _ in group}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == named


def test_a_group_the_model_lacks_is_named():
    model = tiny_memory_model(tiny_recipe(1))
    with pytest.raises(UsageError, match="nothing of retriever"):
        select(model, ["read_adapter", "retriever"])
