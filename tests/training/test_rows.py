"""What a process carries on: exact after saving, seeds of its own, keys made again."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.training.rows import RowState
from tests.training.helpers import documents, draw, runner_of, tiny_memory_model, tiny_recipe


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("eviction", ["oldest", "recall_frequency"])
def test_state_goes_through_a_file_and_every_later_step_is_the_same(tmp_path, stage, eviction):
    """Short- and long-term memory (past its capacity), the cached documents, and what comes of them."""
    recipe = tiny_recipe(stage, memory={"eviction": eviction})
    runner = runner_of(recipe)
    for step in range(7):
        runner.run(step, documents(2, [6, 5], seed=step), draw("multi_chunk", cache=step == 2))
    torch.save(runner.rows.state_dict(), tmp_path / "rows.pt")
    other = runner_of(recipe)
    other.run(0, documents(2, 2, seed=50), draw("multi_chunk"))
    other.rows.load_state_dict(torch.load(tmp_path / "rows.pt", weights_only=True))
    assert other.rows.cached == runner.rows.cached and other.rows.contexts == runner.rows.contexts
    for row, store in enumerate(runner.rows.memory.long_term):
        again = other.rows.memory.long_term[row]
        assert (again.pending, again.writes_since_merge) == (store.pending, store.writes_since_merge)
        for layer, restored in zip(store.layers, again.layers, strict=True):
            assert layer.created.start == restored.created.start > 0  # something has been evicted
            assert torch.equal(layer.recall_frequency, restored.recall_frequency)
            assert len(layer.recall_frequency) == (0 if eviction == "oldest" else len(layer) - store.pending)
    for step, task in enumerate(("revisit", "multi_chunk", "two_chunk", "revisit", "full_context"), start=7):
        batch = documents(2, [4, 7], seed=step)
        losses = [one.run(step, batch, draw(task)).loss for one in (runner, other)]
        assert torch.equal(*losses), task


def test_saving_copies():
    runner = runner_of(tiny_recipe(3))
    runner.run(0, documents(2, 8), draw("multi_chunk"))
    saved = runner.rows.state_dict()
    before = saved["memory"]["short_term"][0]["values"].clone()
    runner.run(1, documents(2, 8, seed=1), draw("multi_chunk"))
    assert torch.equal(saved["memory"]["short_term"][0]["values"], before)


def test_a_stage_without_memory_saves_too():
    rows = runner_of(tiny_recipe("base")).rows
    assert rows.memory is None
    rows.load_state_dict(rows.state_dict())


def test_every_row_process_and_life_has_its_own_seed():
    recipe = tiny_recipe(1)
    model = tiny_memory_model(recipe)
    seeds = []
    for rank in range(3):
        rows = RowState(model, recipe, rank)
        seeds += rows.memory.seeds
        rows.renew(model)
        seeds += rows.memory.seeds
    assert len(set(seeds)) == 3 * 2 * 2
    assert RowState(model, recipe, 1).memory.seeds == seeds[4:6]


def test_a_new_memory_is_empty_and_forgets_the_cached_documents():
    runner = runner_of(tiny_recipe(1))
    runner.run(0, documents(2, 8), draw("multi_chunk"))
    runner.run(1, documents(2, 2), draw("multi_chunk", fresh=True, cache=False))
    assert runner.rows.memory.created_total == [8, 8] and runner.rows.cached == [None, None]
    assert runner.rows.contexts == [2, 2]


def test_noise_fills_short_term_memory_with_negative_creation_indices():
    rows = runner_of(tiny_recipe(1, memory={"initial": "noise"})).rows
    short = rows.memory.short_term
    assert short.fill == [16, 16]
    assert short.created[0, 0].tolist() == list(range(-16, 0))
    assert short.values.std().item() == pytest.approx(1.0, abs=0.1)
    assert not torch.equal(short.values[0], short.values[1])


def test_keys_are_made_again_with_the_present_weights():
    runner = runner_of(tiny_recipe(3, tasks={"refresh_keys": 3}))
    model, store = runner.model, runner.rows.memory.long_term[0]
    for step in range(3):
        runner.run(step, documents(2, 7, seed=step), draw("multi_chunk"))
    for parameter in model.retrievers.parameters():
        parameter.data.mul_(1.5)

    def stale(layer):
        values, _ = store.layers[layer].take(layer, store.layers[layer].all_positions())
        keys = torch.cat(list(store.layers[layer].keys.views()))
        with torch.no_grad():
            return not torch.allclose(keys, model.memory_keys(layer, values), rtol=1e-4, atol=1e-5)

    assert stale(0) and stale(1)
    runner.run(4, [], draw("revisit"))
    assert stale(0)
    runner.run(6, [], draw("revisit"))
    assert not stale(0) and not stale(1)
