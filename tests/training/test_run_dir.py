"""The folder of a run: written first, never overwritten, and what may change when it goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mplus_cli.errors import MPlusError, UsageError
from mplus_cli.training.recipe import CheckpointSettings, LoggingSettings, OptimizerSettings
from mplus_cli.training.recipe_files import recipe_from
from mplus_cli.training.resuming import Request, open_run, opened_run
from mplus_cli.training.run_dir import RunDirectory

RECIPE = recipe_from({"stage": 1, "model": "somewhere", "steps": 10, "data": {"sources": ["texts"]}})


def checkpoint(run: RunDirectory, step: int):
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(json.dumps({"step": step, "processes": 1, "loss": 1.0, "frozen": {}}))
    return folder


def test_a_run_begins_with_what_was_decided(tmp_path):
    run = RunDirectory.create(tmp_path / "run", RECIPE, ["mplus", "train", "--stage", "1"])
    assert run.recipe() == RECIPE
    assert json.loads((run.path / "deepspeed.json").read_text())["zero_optimization"]["stage"] == 2
    environment = json.loads((run.path / "environment.json").read_text())
    assert {"mplus", "torch", "transformers", "peft", "deepspeed", "python", "begun"} <= environment.keys()
    assert environment["command"] == ["mplus", "train", "--stage", "1"]


def test_a_folder_that_holds_anything_is_never_written_to(tmp_path):
    run = RunDirectory.create(tmp_path / "run", RECIPE)
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(UsageError, match="exists") as caught:
        RunDirectory.create(tmp_path / "run", RECIPE)
    assert caught.value.hint == f"mplus train --resume {tmp_path / 'run'}"
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for taken in ("mine", "file"):
        with pytest.raises(UsageError, match="exists"):
            RunDirectory.create(tmp_path / taken, RECIPE)
    (tmp_path / "empty").mkdir()
    assert RunDirectory.create(tmp_path / "empty", RECIPE).exists


def test_a_missing_deepspeed_configuration_leaves_no_folder(tmp_path):
    with pytest.raises(UsageError, match="no DeepSpeed configuration 'zero9'"):
        RunDirectory.create(tmp_path / "run", replace(RECIPE, deepspeed="zero9"))
    assert not (tmp_path / "run").exists()


def test_length_checkpoints_and_logging_may_change_and_the_old_recipe_is_kept(tmp_path):
    run = RunDirectory.create(tmp_path / "run", RECIPE)
    longer = replace(RECIPE, steps=20, checkpoint=CheckpointSettings(every=5), logging=LoggingSettings(every=1))
    run.change_recipe(longer)
    run.change_recipe(longer)
    assert run.recipe() == longer
    assert sorted(path.name for path in run.path.glob("recipe*")) == ["recipe-1.yaml", "recipe.yaml"]


def test_what_was_learned_from_may_not_change(tmp_path):
    run = RunDirectory.create(tmp_path / "run", RECIPE)
    with pytest.raises(UsageError) as caught:
        run.change_recipe(replace(RECIPE, seed=1, steps=20, optimizer=OptimizerSettings(lr=1e-3)))
    assert "seed: 42 is now 1" in caught.value.message
    assert "optimizer.lr" in caught.value.message
    assert "\n  steps:" not in caught.value.message
    assert run.recipe() == RECIPE


def test_two_commands_cannot_train_one_run(tmp_path):
    run = RunDirectory.create(tmp_path / "run", RECIPE)
    with run.locked(), pytest.raises(UsageError, match="being trained by another process"), run.locked():
        pass
    with run.locked():
        pass


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("stage: 1\nmodel: somewhere\nsteps: 10\ndata:\n  sources: [texts]\n")
    return path


def test_auto_begins_and_then_goes_on(tmp_path, recipe_file):
    request = Request(recipe=recipe_file, out=tmp_path / "run", resume="auto")
    run, found = open_run(request)
    assert found is None
    assert open_run(request)[1] is None, "killed before the first checkpoint"
    checkpoint(run, 3)
    newest = checkpoint(run, 12)
    assert open_run(request)[1] == newest


def test_a_run_goes_on_by_its_own_recipe_and_overrides(tmp_path, recipe_file):
    run, _ = open_run(Request(recipe=recipe_file, out=tmp_path / "run"))
    again, _ = open_run(Request(overrides=("steps=30",), resume=str(tmp_path / "run")))
    assert again.recipe() == replace(run.recipe(), steps=30)
    with pytest.raises(UsageError, match="begun with another recipe"):
        open_run(Request(overrides=("optimizer.lr=1",), resume=str(tmp_path / "run")))
    with pytest.raises(UsageError, match="not the folder of a training run"):
        open_run(Request(resume=str(tmp_path / "elsewhere")))


def test_going_back_sets_later_checkpoints_aside(tmp_path, recipe_file):
    run, _ = open_run(Request(recipe=recipe_file, out=tmp_path / "run"))
    early, middle, late = (checkpoint(run, step) for step in (2, 4, 6))
    again, found = open_run(Request(resume=str(middle)))
    assert (again.path, found) == (run.path, middle)
    assert early.exists() and middle.exists() and not late.exists()
    assert (run.checkpoints / "set-aside" / "step-00000006.1" / "checkpoint.json").exists()
    assert open_run(Request(resume=str(run.path)))[1] == middle


def test_bad_input_before_the_first_step_leaves_no_run(tmp_path, recipe_file):
    request = Request(recipe=recipe_file, out=tmp_path / "run")
    with pytest.raises(UsageError, match="no such text"), opened_run(request):
        raise UsageError("no such text")
    assert not (tmp_path / "run").exists()
    with pytest.raises(MPlusError, match="a guard"), opened_run(request):
        raise MPlusError("a guard")
    assert (tmp_path / "run").exists(), "other failures are worth a look"
    with pytest.raises(UsageError), opened_run(replace(request, resume="auto")):
        raise UsageError("no such text")
    assert (tmp_path / "run").exists(), "it was there before"


def test_a_run_with_steps_is_never_removed(tmp_path, recipe_file):
    with pytest.raises(UsageError), opened_run(Request(recipe=recipe_file, out=tmp_path / "run")) as (run, _):
        run.log.write_text('{"step": 1}\n')
        raise UsageError("no documents left in this epoch")
    assert run.log.exists()


def test_a_folder_is_named_after_the_recipe(recipe_file):
    assert str(Request(recipe=recipe_file).folder) == "runs/mine"
    assert str(Request(stage=2).folder) == "runs/stage2"
    with pytest.raises(UsageError, match="Neither"):
        _ = Request().folder
