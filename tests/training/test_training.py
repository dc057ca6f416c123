"""Whole small runs with DeepSpeed: what they leave behind, what moves and what does not, and what stops them."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from mplus_cli.core.loading import load_tokenizer
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.errors import CheckpointError, MissingExtraError, MPlusError, UsageError
from mplus_cli.training.checkpoints import Checkpoints, find_checkpoints, read_record
from mplus_cli.training.engine import Engine
from mplus_cli.training.groups import group_of
from mplus_cli.training.guards import GuardError
from mplus_cli.training.resuming import Request
from mplus_cli.training.rows import RowState
from mplus_cli.training.run_dir import RunDirectory
from mplus_cli.training.stages import STAGES
from tests.training.runs import losses, save_recipe, train_here

TRAINED = {1: "without-store", 2: "without-store", 3: "with-store"}


def moved(before: Path, after: Path) -> tuple[set[str], set[str]]:
    """Groups in which some tensor changed, and groups in which some tensor did not."""
    one, other = (MPlusForCausalLM.from_pretrained(path).state_dict() for path in (before, after))
    changed = {name: not one[name].equal(other[name]) for name in other if name in one}
    groups = {name: group_of(name) for name in changed if name != "lm_head.weight"}
    return {g for n, g in groups.items() if changed[n]}, {g for n, g in groups.items() if not changed[n]}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_moves_its_groups_and_nothing_else(tmp_path, stage):
    changes = {"loss__random_query_length": False} if stage == 3 else {}
    recipe = save_recipe(tmp_path, stage, steps=5, **changes)
    summary = train_here(Request(recipe=recipe, out=tmp_path / "run"))
    assert summary.complete
    changed, unchanged = moved(tmp_path / TRAINED[stage], tmp_path / "run" / "model")
    assert changed == set(STAGES[stage].trains)
    assert "backbone" in unchanged


def test_a_run_leaves_its_recipe_versions_data_journal_curves_and_a_model_that_works(tmp_path):
    recipe = save_recipe(tmp_path, 3, steps=6, data__eval_documents=3, logging__tensorboard=True)
    summary = train_here(Request(recipe=recipe, out=tmp_path / "run"))
    run = RunDirectory(tmp_path / "run")
    assert run.recipe().steps == 6
    assert json.loads((run.path / "data.json").read_text())["sources"][0]["revision"]
    assert json.loads((run.path / "summary.json").read_text())["steps"] == 6
    assert run.curves.read_bytes().startswith(b"\x89PNG")
    assert list(run.tensorboard.iterdir())
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]["tasks"]) == {"full_context", "two_chunk", "multi_chunk", "revisit"}, "the first step runs all"
    assert all(len(line["tasks"]) == 1 for line in lines[1:])
    assert [("validation_loss" in line) for line in lines] == [False, False, True, False, False, True]
    assert (
        sum(lines[1]["seconds"][p] for p in ("data", "forward", "backward", "optimizer"))
        <= lines[1]["seconds"]["total"]
    )
    assert summary.tokens == sum(line["tokens"] for line in lines)

    assert len({path.stat().st_mode for path in run.model.iterdir()}) == 1, "whoever reads one file reads all"
    model, tokenizer = MPlusForCausalLM.from_pretrained(run.model), load_tokenizer(run.model)
    memory = model.new_memory()
    model.inject(torch.tensor([tokenizer("x" * 40)["input_ids"]]), memory)
    answer = model.generate(torch.tensor([[70, 71]]), memory=memory, max_new_tokens=3, do_sample=False, pad_token_id=2)
    assert answer.shape == (1, 5)


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path):
    recipe = save_recipe(tmp_path, steps=8, checkpoint__every=1, checkpoint__keep_last=2, checkpoint__keep_best=2)
    train_here(Request(recipe=recipe, out=tmp_path / "run"))
    found = losses(tmp_path / "run")  # of single steps, as a checkpoint is written after each
    best = sorted(found, key=lambda step: found[step])[:2]
    kept = {read_record(path).step for path in find_checkpoints(tmp_path / "run" / "checkpoints")}
    assert kept == {7, 8, *best}
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        f"step-{step:08d}" for step in sorted(kept)
    ]


def test_a_run_can_be_made_longer(tmp_path):
    recipe = save_recipe(tmp_path, steps=3)
    train_here(Request(recipe=recipe, out=tmp_path / "run"))
    assert train_here(Request(resume=str(tmp_path / "run"))).complete, "nothing left to do"
    train_here(Request(resume=str(tmp_path / "run"), overrides=("steps=5",)))
    train_here(Request(recipe=save_recipe(tmp_path, name="five", steps=5), out=tmp_path / "five"))
    assert losses(tmp_path / "run") == losses(tmp_path / "five")


# -- what stops a run --


def refused(tmp_path, kind, match, stage=1, **changes) -> MPlusError:
    with pytest.raises(kind, match=match) as caught:
        train_here(Request(recipe=save_recipe(tmp_path, stage, **changes), out=tmp_path / "run"))
    assert not (tmp_path / "run" / "model").exists()
    return caught.value


def test_a_group_that_no_task_trains_stops_the_run(tmp_path):
    # Multi-chunk steps write without gradient, so the write adapter learns nothing.
    error = refused(tmp_path, GuardError, "no gradient reaches write_adapter", tasks__full_memory=1.0)
    assert "read_adapter" not in error.message
    assert not find_checkpoints(tmp_path / "run" / "checkpoints")
    assert (tmp_path / "run" / "recipe.yaml").exists(), "a failure worth a look stays"


def test_a_frozen_tensor_that_moves_stops_the_run(tmp_path, monkeypatch):
    original = Engine.step

    def careless(self, step):
        with torch.no_grad():
            self.model.model.norm.weight[3] += 1e-7
        return original(self, step)

    monkeypatch.setattr(Engine, "step", careless)
    refused(tmp_path, GuardError, r"1 frozen tensors changed in the first step: model\.norm\.weight")


@pytest.mark.parametrize("deepspeed", ["zero0", "zero2"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_not_finite_stops_the_run_and_names_documents(tmp_path, precision, deepspeed):
    error = refused(
        tmp_path,
        GuardError,
        r"of step \d is not a finite number. Documents of that batch: [0-9a-f]{8}",
        precision=precision,
        deepspeed=deepspeed,
        optimizer__lr=1e30,
        optimizer__clip=None,
    )
    assert "optimizer.lr" in (error.hint or "")
    assert len(losses(tmp_path / "run")) >= 1


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter: file write failed")],
    ids=["python", "torch"],
)
def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, monkeypatch, failure):
    original, calls = torch.save, []

    def fails_later(state, path, *args, **kwargs):
        calls.append(path)
        if "step-00000006" in str(path):
            Path(path).write_bytes(b"half")
            raise failure
        return original(state, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", fails_later)
    with pytest.raises(
        MPlusError, match=r"disk is full .* step 6 was not written; the last whole one is .*00000003"
    ) as e:
        train_here(Request(recipe=save_recipe(tmp_path), out=tmp_path / "run"))
    assert f"--resume {tmp_path / 'run'}" in str(e.value.hint)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.setattr(torch, "save", original)
    assert train_here(Request(resume=str(tmp_path / "run"))).complete


def test_the_first_checkpoint_is_loaded_again_and_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(RowState, "load_state_dict", lambda self, state: setattr(self, "contexts", [9, 9]))
    refused(tmp_path, GuardError, "does not read back as it was written: /parts/rows/contexts")


def test_a_changed_starting_model_is_not_resumed(tmp_path):
    recipe = save_recipe(tmp_path, steps=3)
    train_here(Request(recipe=recipe, out=tmp_path / "run"))
    model = MPlusForCausalLM.from_pretrained(tmp_path / "without-store")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.base_layer.weight[0, 0] += 0.5
    model.save_pretrained(tmp_path / "without-store")
    with pytest.raises(CheckpointError, match="The model that this run began with has changed: 1 frozen tensors"):
        train_here(Request(resume=str(tmp_path / "run"), overrides=("steps=5",)))


def test_a_damaged_checkpoint_is_named(tmp_path):
    recipe = save_recipe(tmp_path, steps=3)
    train_here(Request(recipe=recipe, out=tmp_path / "run"))
    (saved,) = find_checkpoints(tmp_path / "run" / "checkpoints")
    file = saved / "process-00000.pt"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="step-00000003 cannot be read"):
        train_here(Request(resume=str(tmp_path / "run"), overrides=("steps=5",)))


def test_a_checkpoint_is_not_there_until_it_is_whole(tmp_path, monkeypatch):
    def dies(self, folder, record):
        (folder / "engine").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        train_here(Request(recipe=save_recipe(tmp_path), out=tmp_path / "run"))
    assert find_checkpoints(tmp_path / "run" / "checkpoints") == []
    monkeypatch.undo()
    assert train_here(Request(resume=str(tmp_path / "run"))).complete
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_missing_deepspeed_gives_the_line_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "deepspeed", None)
    error = refused(tmp_path, MissingExtraError, "training needs DeepSpeed")
    assert error.hint == 'pip install "mplus[train]"'
    assert error.exit_code == 2


def test_a_stage_on_a_checkpoint_that_lacks_what_it_needs(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.fixtures import byte_tokenizer

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=259, **sizes))
    plain.save_pretrained(tmp_path / "plain")
    byte_tokenizer().save_pretrained(tmp_path / "plain")
    error = refused(tmp_path, CheckpointError, "stage 1 makes them", stage=2, model=str(tmp_path / "plain"))
    assert "--stage 1" in str(error.hint)


def test_no_documents_left(tmp_path):
    refused(
        tmp_path, UsageError, "No documents are left", data__min_chunk=5000, data__max_chunk=5000, data__window=5000
    )
