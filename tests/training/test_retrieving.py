"""The retriever's positives against provenance, its losses against loops, recall against counting."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mplus_cli.core.short_term_memory import EMPTY
from mplus_cli.training.graded import GradedPrefix, Search
from mplus_cli.training.groups import group_of
from mplus_cli.training.recipe import LossSettings
from mplus_cli.training.retrieving import RetrieverTraining, recall, within, write_side_loss
from mplus_cli.training.tasks.reading import read
from tests.training.helpers import documents, draw, gradients, runner_of, tiny_recipe

CONTRASTIVE = {"memory": {"retriever_score": "log_sum_exp"}, "loss": {"retriever": "contrastive"}}


def after_documents(count=2, **sections):
    """A runner whose memories hold two documents each, with a journal of every write."""
    loss = {"random_query_length": False} | sections.pop("loss", {})
    runner = runner_of(tiny_recipe(3, loss=loss, data={"batch_size": count}, **sections))
    runner.rows.memory.keep_journal()
    runner.run(0, documents(count, [5, 3, 4][:count], seed=1), draw("multi_chunk"))
    runner.run(1, documents(count, [4, 6, 2][:count], seed=2), draw("multi_chunk", cache=False))
    return runner


def training_of(runner, spans, owners=None, differentiable=False, **settings):
    memory = runner.rows.memory
    owners = list(range(memory.batch_size)) if owners is None else owners
    ids = torch.randint(40, 130, (len(owners), 6), generator=torch.Generator().manual_seed(2))
    query = Search(torch.ones(len(owners), 6, dtype=torch.bool))
    prefix = GradedPrefix(runner.model, memory, owners, query=query, keep_seen=True, differentiable=differentiable)
    read(runner.model, ids, prefix)
    losses = LossSettings(**({"retriever": runner.recipe.loss.retriever} | settings))
    return RetrieverTraining(runner.model, losses, prefix, spans, query, np.random.default_rng(0))


def tokens_of_writes(memory, row, count):
    """Values per layer of the memory tokens of a row's newest `count` writes, and their creation indices."""
    records = memory.journal[row][-count:]
    values = torch.cat([record.values for record in records], dim=1)
    return values, range(records[0].created, records[-1].created + records[-1].values.shape[1])


@pytest.mark.parametrize("sections", [{}, CONTRASTIVE])
def test_positives_are_the_tokens_that_the_targets_own_contexts_made(sections):
    """Against provenance: the journal has the values each write made; where they are now is looked up by value."""
    runner = after_documents(**sections)
    memory = runner.rows.memory
    spans = [(memory.journal[row][-count].created, memory.created_total[row]) for row, count in ((0, 4), (1, 6))]
    training = training_of(runner, spans, hard_negatives=False)
    for layer in range(2):
        rows, created = training.candidates(layer)
        _, positive, exists = training.scores(layer)
        assert (exists == (created != EMPTY)).all()
        for row, count in ((0, 4), (1, 6)):
            values, indices = tokens_of_writes(memory, row, count)
            own = values[layer]
            same = (rows[row, :, None] == own[None]).all(-1).any(1)
            assert (positive[row] & exists[row]).tolist() == (same & exists[row]).tolist()
            assert 0 < int(positive[row].sum()) < int(exists[row].sum())
            found = created[row][positive[row] & exists[row]].tolist()
            assert set(found) <= set(indices) and len(set(found)) == len(found)


def test_the_published_form_scores_short_term_memory_alone_and_the_contrastive_both():
    published, contrastive = after_documents(), after_documents(**CONTRASTIVE)
    for runner, both in ((published, False), (contrastive, True)):
        memory = runner.rows.memory
        training = training_of(runner, [(0, 1), (0, 1)])
        _, created = training.candidates(0)
        for row in range(2):
            held = set(memory.short_term.created[row, 0].tolist())
            stored = set(torch.cat(list(memory.long_term[row].layers[0].created.views())).tolist())
            assert set(created[row].tolist()) - {EMPTY} == (held | stored if both else held)


def test_published_loss_against_a_loop():
    runner = after_documents()
    model, memory = runner.model, runner.rows.memory
    spans = [(4, 12), (0, 8)]
    training = training_of(runner, spans, negative_weight=0.5)
    losses, _ = training.run()
    for row, (start, end) in enumerate(spans):
        right, wrong = [], []
        for layer, seen in enumerate(training.prefix.seen):
            norm, retriever = model.model.layers[layer].input_layernorm, model.retrievers[layer]
            values, created = memory.short_term.ordered(row)
            for token, name in zip(values[layer], created[layer].tolist(), strict=True):
                key = retriever.key_proj(norm(token))
                w = torch.stack([torch.sigmoid(retriever.query_proj(q) @ key) for q in seen.text[row]]).mean().item()
                (right if start <= name < end else wrong).append(w)
        left = sum(-math.log(w + 1e-5) for w in right) / max(1, len(right))
        other = sum(-math.log(1 - w + 1e-5) for w in wrong) / max(1, len(wrong))
        assert losses[row].item() == pytest.approx((left + 0.5 * other) / 2, rel=1e-4)


@pytest.mark.parametrize("hard", [True, False])
def test_contrastive_loss_against_a_loop(hard):
    runner = after_documents(**CONTRASTIVE)
    model, memory = runner.model, runner.rows.memory
    owners = [1, 0, 1]
    spans = [(8, 12), (12, 16), (0, 4)]
    training = training_of(runner, spans, owners, hard_negatives=hard, candidates=0)
    losses, _ = training.run()
    for text, (owner, (start, end)) in enumerate(zip(owners, spans, strict=True)):
        each = []
        for layer, seen in enumerate(training.prefix.seen):
            norm, retriever = model.model.layers[layer].input_layernorm, model.retrievers[layer]
            scores, right = [], []
            for row in range(2) if hard else [owner]:
                values, created = memory.short_term.ordered(row)
                store = memory.long_term[row].layers[layer]
                stored, names = store.take(layer, store.all_positions())
                for token, name in zip(
                    [*values[layer], *stored], [*created[layer].tolist(), *names.tolist()], strict=True
                ):
                    key = retriever.key_proj(norm(token)).double()
                    queries = retriever.query_proj(seen.text[text]).double()
                    products = (queries @ key / math.sqrt(8)).tolist()
                    scores.append(math.log(sum(math.exp(p) for p in products)))
                    right.append(row == owner and start <= name < end)
            total = math.log(sum(math.exp(s) for s in scores))
            logs = [s - total for s, good in zip(scores, right, strict=True) if good]
            each.append(-sum(logs) / len(logs) / 2 - math.log(sum(math.exp(p) for p in logs)) / 2 if logs else 0.0)
        assert losses[text].item() == pytest.approx(sum(each) / len(each), rel=1e-4)


def test_large_stores_are_sampled_but_never_their_positives():
    runner = after_documents(**CONTRASTIVE)
    memory = runner.rows.memory
    spans = [(0, 8), (4, 8)]
    training = training_of(runner, spans, candidates=3)
    _, created = training.candidates(1)
    for row in range(2):
        stored = torch.cat(list(memory.long_term[row].layers[1].created.views())).tolist()
        scored = [name for name in created[row, training.prefix.width_short - 1 :].tolist() if name != EMPTY]
        positives = {name for name in stored if spans[row][0] <= name < spans[row][1]}
        assert positives <= set(scored) <= set(stored)
        assert len(set(scored) - positives) == min(3, len(stored) - len(positives))


@pytest.mark.parametrize(("reaches", "expected"), [(False, {"retriever"}), (True, {"retriever", "read_adapter"})])
def test_the_loss_reaches_the_model_only_when_told(reaches, expected):
    runner = after_documents(**CONTRASTIVE)
    training = training_of(runner, [(4, 12), (0, 8)], differentiable=reaches)
    training.run()[0].sum().backward()
    groups = {group_of(name) for name in gradients(runner.model)}
    assert expected <= groups and ("read_adapter" in groups) == reaches


def test_the_loss_reaches_writes_with_gradient():
    recipe = {"tasks": {"gradient_writes": 2}, "memory": {"retriever_score": "log_sum_exp"}}
    found = {}
    for reaches in (False, True):
        loss = {"retriever": "contrastive", "reaches_model": reaches, "random_query_length": False}
        runner = runner_of(tiny_recipe(3, loss=loss, **recipe))
        output = runner.run(0, documents(2, 6), draw("multi_chunk"))
        output.loss.backward()
        found[reaches] = output.loss.item(), gradients(runner.model)
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-5)  # the same loss
    name = next(name for name in found[True][1] if "lora_A.write" in name)
    assert not torch.allclose(found[True][1][name], found[False][1][name], rtol=1e-3)


def test_recall_counts_what_was_there_to_be_found():
    runner = after_documents()
    memory = runner.rows.memory
    spans = [(0, 12), (4, 8)]
    prefix = training_of(runner, spans).prefix
    there = found = chance = 0.0
    for layer, seen in enumerate(prefix.seen):
        for row, (start, end) in enumerate(spans):
            stored = torch.cat(list(memory.long_term[row].layers[layer].created.views())).tolist()
            own = [name for name in stored if start <= name < end]
            there += len(own)
            found += len(set(own) & set(seen.retrieved[row].tolist()))
            chance += len(own) * 6 / len(stored)
    assert recall(prefix, spans) == pytest.approx((found / there, chance / there))
    assert recall(prefix, [(900, 904), (900, 904)]) is None  # nothing there to be found


def test_random_retrieval_has_the_recall_of_chance():
    runner = runner_of(tiny_recipe(3, data={"batch_size": 1}))
    measured = []
    for step in range(30):
        for projector in [p for r in runner.model.retrievers for p in r.parameters()]:
            projector.data.normal_()
        output = runner.run(step, documents(1, 6, seed=step), draw("multi_chunk"))
        if "recall_over_chance" in output.parts:
            measured.append(output.parts["recall_over_chance"].item())
    assert len(measured) > 20 and np.mean(measured) == pytest.approx(1.0, abs=0.35)


def test_write_side_loss_against_a_loop():
    trained = ["retriever", "write_retriever"]
    runner = after_documents(train=trained, loss={"write_side": True})
    model, memory = runner.model, runner.rows.memory
    spans = {0: (16, 24), 1: (20, 36)}
    losses = write_side_loss(model, runner.recipe.loss, memory, spans)
    for position, (row, (start, end)) in enumerate(spans.items()):
        right, wrong = [], []
        for layer in range(2):
            norm, retriever = model.model.layers[layer].input_layernorm, model.retrievers[layer]
            values, created = memory.short_term.ordered(row)
            queries = [retriever.write_query_proj(norm(token)) for token in values[layer, -4:]]
            for token, name in zip(values[layer], created[layer].tolist(), strict=True):
                key = retriever.key_proj(norm(token))
                w = torch.stack([torch.sigmoid(q @ key) for q in queries]).mean().item()
                (right if start <= name < end else wrong).append(w)
        left = sum(-math.log(w + 1e-5) for w in right) / max(1, len(right))
        other = sum(-math.log(1 - w + 1e-5) for w in wrong) / max(1, len(wrong))
        assert losses[position].item() == pytest.approx((left + other) / 2, rel=1e-4)


def test_the_write_side_learns_on_new_documents_only():
    trained = ["retriever", "write_retriever"]
    runner = runner_of(tiny_recipe(3, train=trained, loss={"write_side": True}))
    new = runner.run(0, documents(2, 6), draw("multi_chunk"))
    assert "write_retriever" in new.parts
    assert "write_retriever" not in runner.run(1, [], draw("revisit")).parts
    new.loss.backward()
    assert {group_of(name) for name in gradients(runner.model)} == {"retriever", "write_retriever"}


def test_the_retriever_can_be_trained_ahead_of_long_term_memory():
    """As the released stage 2: on short-term memory alone."""
    trained = ["write_adapter", "read_adapter", "retriever"]
    runner = runner_of(tiny_recipe(2, train=trained, loss={"retriever": "published", "random_query_length": True}))
    assert runner.rows.memory.long_term == []
    output = runner.run(0, documents(2, 7), draw("multi_chunk"))
    output.loss.backward()
    assert "retriever" in {group_of(name) for name in gradients(runner.model)}
    assert "recall" not in output.parts and runner.rows.memory.long_term == []


def test_spans_are_half_open():
    created = torch.tensor([[3, 4, 7, 8, EMPTY]])
    assert within(created, torch.tensor([[4, 8]])).tolist() == [[False, True, True, False, False]]


@pytest.fixture
def recorded(monkeypatch):
    """The texts that retriever losses were asked about, and the spans they were given."""
    found = []

    class Recorded(RetrieverTraining):
        def __init__(self, model, settings, prefix, spans, *rest):
            found.append((prefix.rows.owners.tolist(), list(spans)))
            super().__init__(model, settings, prefix, spans, *rest)

    monkeypatch.setattr("mplus_cli.training.tasks.reading.RetrieverTraining", Recorded)
    return found


def test_every_task_says_which_writes_told_what_it_asks(recorded):
    """K = 4 memory tokens a write, so the writes of a row are [0, 4), [4, 8), ..."""
    tasks = {"questions": {"share": 0.5, "per_memory": 2, "rebuild": 0.0}}
    runner = runner_of(tiny_recipe(3, tasks=tasks, **CONTRASTIVE))
    runner.run(0, documents(2, [5, 2]), draw("multi_chunk"))
    runner.run(1, documents(2, [3, 4], seed=1), draw("multi_chunk", cache=False, contexts=3))
    runner.run(2, [], draw("revisit"))
    assert recorded == [([0, 1], [(0, 20), (0, 8)]), ([0, 1], [(20, 32), (8, 20)]), ([0, 1], [(0, 20), (0, 8)])]

    recorded.clear()
    batch = documents(2, 3, seed=2, questions=1)
    # One question each, about the second context of the first document and the third of the second.
    batch = [replace(e, questions=(e.questions[about],)) for e, about in zip(batch, (1, 2), strict=True)]
    runner.run(3, batch, draw("questions"))
    assert recorded == [([0, 1], [(36, 40), (28, 32)])]
