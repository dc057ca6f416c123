"""One step: what learns in each stage, batches against single rows, the same draws everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mplus_cli.training.examples import Example
from mplus_cli.training.groups import all_groups, group_of
from mplus_cli.training.stages import STAGES
from tests.training.helpers import documents, draw, gradients, runner_of, tiny_memory_model, tiny_recipe

ADAPTERS = ("paper", "published")  # which one reads in the two-chunk task
BASE = {"in_context": {"share": 0.4}, "copying": {"share": 0.3, "rows": 2, "length": 20, "longest": 8}}


@pytest.mark.parametrize(("stage", "adapter"), [("base", "paper"), *((n, a) for n in (1, 2, 3) for a in ADAPTERS)])
def test_what_moves_in_each_stage_and_what_does_not(stage, adapter):
    """One optimizer step over every task: all groups of the stage change, everything else is bit-identical."""
    tasks = BASE if stage == "base" else {"two_chunk_adapter": adapter}
    recipe = tiny_recipe(stage, tasks=tasks)
    runner = runner_of(recipe)
    before = {name: parameter.detach().clone() for name, parameter in runner.model.named_parameters()}
    trained = [p for p in runner.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 1.0)
    for task in runner.all_tasks():
        runner.run(0, documents(2, 6, questions=1), task).loss.backward()
    optimizer.step()
    moved = {name for name, p in runner.model.named_parameters() if not torch.equal(p, before[name])}
    assert {group_of(name) for name in moved} == set(STAGES[stage].trains)
    for name, group in all_groups(runner.model).items():
        names = {parameter for parameter, _ in group}
        assert names & moved == (names if name in STAGES[stage].trains else set()), name


def single_rows(recipe, model, count, runs):
    """The same documents in runners of one row each, with the seeds of the batch's rows."""
    seeds = runner_of(recipe, model=model).rows.memory.seeds
    losses = []
    for row in range(count):
        alone = runner_of(_batch_of_one(recipe), model=model)
        alone.rows.memory.seeds = [seeds[row]]
        for step, (batch, task) in enumerate(runs[:-1]):
            with torch.no_grad():
                alone.run(step, batch[row : row + 1], task)
        batch, task = runs[-1]
        losses.append(alone.run(len(runs) - 1, batch[row : row + 1], task).loss)
    return torch.stack(losses).mean()


def _batch_of_one(recipe):
    return replace(recipe, data=replace(recipe.data, batch_size=1))


CONTRASTIVE = {
    "memory": {"retriever_score": "log_sum_exp"},
    "loss": {"retriever": "contrastive", "hard_negatives": False, "random_query_length": False, "reaches_model": True},
    "tasks": {"gradient_writes": 99},
}
PUBLISHED = {"loss": {"random_query_length": False}}


@pytest.mark.parametrize(("stage", "sections"), [(1, {}), (3, PUBLISHED), (3, CONTRASTIVE)])
@pytest.mark.parametrize("task", ["two_chunk", "multi_chunk", "revisit", "full_context"])
def test_a_batch_is_the_mean_of_its_rows(stage, sections, task):
    """Three documents of 7, 1 and 4 contexts and different targets; loss and every gradient."""
    recipe = tiny_recipe(stage, data={"batch_size": 3}, **sections)
    model = tiny_memory_model(recipe)
    # Contexts of at least K tokens: shorter texts cannot be padded, and are written one after the other.
    runs = [(documents(3, [2, 8, 5], seed=1), draw("multi_chunk")), (documents(3, [7, 1, 4], seed=2), draw(task))]
    together = runner_of(recipe, model=model)
    with torch.no_grad():
        together.run(0, *runs[0])
    loss = together.run(1, *runs[1]).loss
    loss.backward()
    gradient = gradients(model)
    model.zero_grad()
    alone = single_rows(recipe, model, 3, runs)
    alone.backward()
    expected = gradients(model)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-4)
    assert gradient.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(gradient[name], value, rtol=5e-3, atol=5e-3 * scale, msg=name)


def test_every_trainable_parameter_has_a_gradient_in_every_task():
    """ZeRO-2 reduces the same tensors on every process, whichever task runs; unused ones get zeros."""
    runner = runner_of(tiny_recipe(3))
    for task in runner.all_tasks():
        runner.model.zero_grad(set_to_none=True)
        runner.run(0, documents(2, 5), task).loss.backward()
        for name, parameter in runner.model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (task.task, name)


def test_processes_draw_the_same_tasks_but_other_numbers():
    recipe = tiny_recipe(3, tasks={"questions": {"share": 0.3}})
    first, second = (runner_of(recipe, rank=rank) for rank in (0, 1))
    assert [first.draw(step) for step in range(200)] == [second.draw(step) for step in range(200)]
    losses = [runner.run(0, documents(2, 7), draw("multi_chunk")).loss.item() for runner in (first, second)]
    assert losses[0] != losses[1]  # memories drop other tokens, searches have other lengths


def test_a_step_repeats_exactly_and_batches_of_one_step_differ():
    recipe = tiny_recipe(3, tasks={"questions": {"share": 1.0, "per_memory": 1}})
    batch = documents(2, 4, questions=3)
    losses = []
    for _ in range(2):
        runner = runner_of(recipe)
        losses.append([runner.run(7, batch, draw("questions", fresh=True)).loss.item() for _ in range(3)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3  # accumulation: the same documents, other numbers


def test_parts_are_detached_scalars():
    runner = runner_of(tiny_recipe(3))
    for task in runner.all_tasks():
        output = runner.run(0, documents(2, 6), task)
        assert output.task == task.task and output.loss.requires_grad and output.loss.ndim == 0
        for name, value in output.parts.items():
            assert value.ndim == 0 and not value.requires_grad and value.isfinite(), name


def test_losses_add_up():
    recipe = tiny_recipe(3, loss={"retriever_weight": 0.5})
    output = runner_of(recipe).run(0, documents(2, 6), draw("multi_chunk"))
    total = output.parts["ce"] + 0.5 * output.parts["retriever"]
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-6)


def test_training_lowers_the_loss():
    """The smallest sign of life: one document, two-chunk, a few steps."""
    runner = runner_of(tiny_recipe(1, train=["write_adapter", "read_adapter", "backbone"]))
    batch: list[Example] = documents(2, 1)
    optimizer = torch.optim.Adam([p for p in runner.model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for step in range(12):
        runner.rows.renew(runner.model)
        loss = runner.run(step, batch, draw("two_chunk")).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
