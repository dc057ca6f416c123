"""A new backbone that can copy: after a few steps it predicts copies of random strings, which one without cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mplus_cli.core.prefix import TokenPrefix
from mplus_cli.errors import UsageError
from mplus_cli.training.recipe_files import recipe_from
from mplus_cli.training.starting import starting_model
from mplus_cli.training.tasks.reading import read
from tests.fixtures import byte_tokenizer

SIZES = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder


def new_model(tokenizer: Path, **changes):
    settings = {"stage": "base", "model": str(tokenizer), "new_backbone": SIZES | changes, "precision": "float32"}
    return starting_model(recipe_from(settings))


def copied(model, steps: int) -> float:
    """Share of copied tokens that are predicted after some steps."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        ids = torch.randint(0, 256, (12, 14), generator=generator).repeat(1, 2)
        hidden = read(model, ids, TokenPrefix(model, len(ids), None))
        logits, target = model.lm_head(model.model.norm(hidden))[:, 14:-1], ids[:, 15:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((logits.argmax(-1) == target).float().mean())


def test_copies_are_predicted_after_a_few_steps(tokenizer):
    assert copied(new_model(tokenizer, start="copying"), 50) > 0.8
    assert copied(new_model(tokenizer, start="random"), 50) < 0.2


def test_the_start_is_drawn_by_the_seed_and_everything_can_learn(tokenizer):
    first, same = (new_model(tokenizer, start="copying") for _ in range(2))
    for (name, one), (_, other) in zip(first.named_parameters(), same.named_parameters(), strict=True):
        assert torch.equal(one, other) and one.isfinite().all() and one.requires_grad, name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "norms on queries and keys"),
        ({"num_hidden_layers": 1}, "two layers"),
        ({"head_dim": 4}, "at least 8 dimensions"),
        ({"start": "singing"}, "'singing' is not one of random, copying"),
    ],
)
def test_a_backbone_without_room_for_it_is_refused(tokenizer, changes, said):
    with pytest.raises(UsageError, match=said):
        new_model(tokenizer, **({"start": "copying"} | changes))
