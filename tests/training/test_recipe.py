"""Recipes: shipped ones, stage defaults, contradictions; reading one imports neither torch nor DeepSpeed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mplus_cli import config
from mplus_cli.errors import UsageError
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.recipe_files import deepspeed_file, load_recipe, shipped_recipes
from mplus_cli.training.stages import STAGES
from tests.training.helpers import tiny_recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_parses_and_reads_back(name):
    path = shipped_recipes()[name]
    recipe = load_recipe(path)
    assert config.build(Recipe, yaml.safe_load(config.to_yaml(recipe)), name) == recipe
    assert deepspeed_file(recipe).is_file()
    assert f"recipes/{name}.yaml" in path.read_text() or f"mplus train --stage {recipe.stage}" in path.read_text()


def test_all_stages_are_shipped_twice():
    assert set(shipped_recipes()) == {f"stage{n}" for n in (1, 2, 3)} | {
        f"default/{name}" for name in ("base_bare", "base", "stage1", "stage2", "stage3", "stage3_second")
    }


def test_published_values():
    one, two, three = (load_recipe(None, stage=stage) for stage in (1, 2, 3))
    for recipe, full, cat in ((one, 0.1, 0.8), (two, 0.05, 0.9), (three, 0.05, 0.8)):
        assert (recipe.tasks.full_context, recipe.tasks.full_memory, recipe.tasks.revisit) == (full, cat, 0.2)
        assert (recipe.memory.memory_tokens_per_write, recipe.data.window, recipe.data.repeat_ratio) == (256, 2048, 0.1)
        assert recipe.memory.lora and (recipe.memory.lora.r, recipe.memory.lora.alpha) == (16, 32)
        assert "o_proj" not in recipe.memory.lora.target_modules and len(recipe.memory.lora.target_modules) == 6
        assert recipe.optimizer.betas == (0.9, 0.999) and recipe.optimizer.weight_decay == 0.01
        assert recipe.optimizer.lr_scaling == "linear_batch" and recipe.optimizer.clip is None
    assert [r.memory.short_term_size for r in (one, two, three)] == [12_800, 12_800, 10_240]
    assert [r.tasks.replace_cached for r in (one, two, three)] == [1.0, 1.0, 0.2]
    assert one.tasks.max_contexts == two.tasks.max_contexts == ((100_000, 50), (200_000, 100), (None, 200))
    assert three.tasks.max_contexts == ((20_000, 100), (None, 200))
    assert (one.optimizer.lr, two.optimizer.lr, three.optimizer.lr) == (4.6e-5, 4.6e-6, 4.6e-6)
    assert (one.optimizer.schedule, one.optimizer.schedule_steps, one.optimizer.final_ratio) == ("linear", 100_000, 0.1)
    assert (three.memory.retrieval_budget, three.memory.retriever_size, three.optimizer.retriever_lr) == (
        2560,
        256,
        1e-4,
    )
    assert three.loss.retriever == "published" and three.loss.random_query_length
    assert three.memory.short_term_size + three.memory.retrieval_budget == one.memory.short_term_size


def test_stage_defaults_are_the_shipped_values():
    """A recipe that says nothing but its stage has the published task mix."""
    for stage in (1, 2, 3):
        bare = tiny_recipe(stage).tasks
        shipped = load_recipe(None, stage=stage).tasks
        assert bare == shipped, stage


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_overrides_win_over_file_over_stage(tmp_path):
    path = write(tmp_path, "stage: 2\nmodel: m\ntasks: {revisit: 0.3}\n")
    recipe = load_recipe(path, ["tasks.full_context=0.5", "steps=7"])
    assert (recipe.tasks.full_context, recipe.tasks.revisit, recipe.tasks.full_memory, recipe.steps) == (
        0.5,
        0.3,
        0.9,
        7,
    )


def test_everything_wrong_at_once(tmp_path):
    path = write(tmp_path, "stage: 3\nmodel: m\nmodle: x\ntasks: {revisits: 0.1, full_context: 7}\nsteps: many\n")
    with pytest.raises(UsageError) as error:
        load_recipe(path)
    text = error.value.message
    for part in (
        "modle: unknown key (did you mean 'model'?)",
        "(did you mean 'revisit'?)",
        "full_context: must",
        "steps:",
    ):
        assert part in text
    assert text.startswith("4 problems")


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        (1, ["train=[writeadapter]"], "did you mean 'write_adapter'"),
        (1, ["train=[]"], "nothing would learn"),
        (1, ["memory.long_term_capacity=100"], "stage 1 has no long-term memory"),
        (3, ["memory.long_term_capacity=0"], "cannot be 0"),
        (3, ["memory.retrieval_budget=200000"], "must not exceed"),
        (1, ["memory.short_term_size=100"], "at least one write"),
        (1, ["memory.lora=null"], "write_adapter cannot learn"),
        (1, ["data.min_chunk=600"], "data.min_chunk"),
        (1, ["data.max_chunk=4096"], "data.max_chunk"),
        (1, ["tasks.questions.share=0.7", "tasks.copying.share=0.4"], "add up to 1.1"),
        (1, ["tasks.max_contexts=[[100, 5]]"], "must begin with null"),
        (1, ["tasks.max_contexts=[[100, 5], [50, 6], [null, 7]]"], "steps must grow"),
        (1, ["tasks.copying.shortest=30"], "shortest <= longest"),
        (3, ["loss.retriever=contrastive"], "log_sum_exp"),
        (3, ["loss.retriever=null"], "retriever cannot learn"),
        (3, ["loss.write_side=true"], "write_retriever"),
        (3, ["loss.reaches_model=true"], "only with loss.retriever contrastive"),
        (2, ["loss.retriever=published"], "not among the groups that train"),
        (1, ["optimizer.warmup_steps=2000000"], "must not exceed steps"),
        (2, ["tasks.questions.lend_stores=0.5"], "stage 2 has no long-term memory to lend"),
    ],
)
def test_contradictions_are_refused(stage, overrides, message):
    with pytest.raises(UsageError, match=message):
        load_recipe(None, overrides, stage)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks.in_context.share=0.5", "tasks.questions.share=0.1"], "no memory to ask"),
        (["tasks.in_context.share=0.5", "tasks.full_context=0.5"], "must be 1"),
    ],
)
def test_the_base_stage_has_no_memory(overrides, message):
    with pytest.raises(UsageError, match=message):
        load_recipe(shipped_recipes()["default/base"], overrides)


@pytest.mark.parametrize("stage", ["4", "[1]", "true", "two"])
def test_unknown_stages(tmp_path, stage):
    with pytest.raises(UsageError, match="there is no stage"):
        load_recipe(write(tmp_path, f"stage: {stage}\nmodel: m\n"))


def test_a_recipe_of_another_stage_is_refused():
    with pytest.raises(UsageError, match="is a recipe of stage 2, not 1"):
        load_recipe(shipped_recipes()["stage2"], stage=1)


def test_deepspeed_file_beside_the_recipe(tmp_path):
    (tmp_path / "own.json").write_text("{}")
    recipe = load_recipe(write(tmp_path, "stage: 1\nmodel: m\ndeepspeed: own.json\n"))
    assert deepspeed_file(recipe) == (tmp_path / "own.json").resolve()
    with pytest.raises(UsageError, match="no DeepSpeed configuration 'none'"):
        deepspeed_file(load_recipe(None, ["deepspeed=none"], 1))


def test_the_stage_2_retriever_of_the_released_code():
    recipe = load_recipe(
        None, ["train=[write_adapter, retriever]", "loss.retriever=published", "loss.random_query_length=true"], 2
    )
    assert recipe.has_retrievers and recipe.memory.long_term_capacity == 0
    assert not load_recipe(None, stage=2).has_retrievers


def test_the_table_of_stages_is_sound():
    for name, stage in STAGES.items():
        assert stage.name == name and stage.trains
        assert all(maker in STAGES for _, maker in stage.needs)


def test_reading_a_recipe_needs_no_heavy_library():
    code = (
        "import sys; from mplus_cli.training.recipe_files import load_recipe; load_recipe(None, stage=3);"
        "print([m for m in ('torch', 'deepspeed', 'transformers', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
