"""DeepSpeed as the engine: every shipped configuration trains alike, and what it would do silently is caught."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mplus_cli.errors import UsageError
from mplus_cli.training.engine import complete, read_configuration
from mplus_cli.training.recipe_files import recipe_folder, recipe_from
from mplus_cli.training.resuming import Request
from tests.training.runs import losses, save_recipe, train_here

SHIPPED = sorted((recipe_folder() / "deepspeed").glob("*.json"))
RECIPE = recipe_from(
    {"stage": 1, "model": "x", "data": {"batch_size": 3}, "optimizer": {"clip": 0.5}, "precision": "bfloat16"}
)


def write(tmp_path: Path, settings: object) -> Path:
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(settings))
    return path


def test_the_recipe_decides_what_learning_means(tmp_path):
    mine = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 10**9}, "wall_clock_breakdown": True}
    whole = complete(read_configuration(write(tmp_path, mine)), RECIPE, trained=1000)
    assert whole["train_micro_batch_size_per_gpu"] == 3
    assert whole["gradient_clipping"] == 0.5
    assert whole["bf16"] == {"enabled": True}
    assert whole["wall_clock_breakdown"] is True
    assert whole["zero_optimization"]["stage"] == 2
    assert whole["zero_optimization"]["reduce_bucket_size"] == 1000, "DeepSpeed allocates buckets whole"


def test_what_both_could_set_is_refused_with_its_place_in_the_recipe(tmp_path):
    with pytest.raises(UsageError) as caught:
        read_configuration(
            write(tmp_path, {"optimizer": {"type": "SGD"}, "fp16": {}, "zero_optimization": {"stage": 3}})
        )
    for part in ("optimizer: set optimizer in the recipe", "fp16: set precision", "must be 0, 1 or 2"):
        assert part in caught.value.message


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_configuration_must_be_a_json_object(tmp_path, text):
    path = tmp_path / "deepspeed.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"deepspeed\.json"):
        read_configuration(path)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_shipped_configuration_trains_alike(tmp_path, precision):
    found = {}
    for path in SHIPPED:
        recipe = save_recipe(
            tmp_path, name=path.stem, steps=4, checkpoint__every=2, deepspeed=path.stem, precision=precision
        )
        assert train_here(Request(recipe=recipe, out=tmp_path / "runs" / path.stem)).complete
        found[path.stem] = list(losses(tmp_path / "runs" / path.stem).values())
    assert {"zero0", "zero1", "zero2", "zero2_offload"} <= found.keys()
    for name, values in found.items():
        assert values == pytest.approx(found["zero2"], rel=1e-6 if precision == "float32" else 2e-3), name


def test_rotary_frequencies_stay_what_they_were_in_bfloat16(tmp_path):
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM

    recipe = save_recipe(tmp_path, steps=1, precision="bfloat16")
    seen = {}

    def look(loop):
        seen.update(dict(loop.engine.model.named_buffers()))

    train_here(Request(recipe=recipe, out=tmp_path / "run"), look)
    fresh = MPlusForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert fresh.dtype == torch.bfloat16
    frequencies = {name: buffer for name, buffer in fresh.named_buffers() if "inv_freq" in name}
    assert frequencies
    for name, buffer in frequencies.items():
        assert seen[name].dtype == buffer.dtype == torch.float32
        assert seen[name].equal(buffer)
