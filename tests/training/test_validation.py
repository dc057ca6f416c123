"""Validation is repeatable and leaves training as it was; the work of a step is counted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mplus_cli.machine import peak_bytes
from mplus_cli.training.guards import digest
from mplus_cli.training.random_state import random_state, set_random_state
from mplus_cli.training.resuming import Request
from mplus_cli.training.status import WorkCounter, peak_flops
from tests.training.runs import save_recipe, train_here


@pytest.mark.parametrize("stage", [1, 3])
def test_validation_leaves_training_as_it_was(tmp_path, stage):
    def look(loop):
        def state():
            rows, stream = loop.runner.rows.state_dict(), loop.stream.state_dict()
            return digest({"engine": loop.engine.state(), "rows": rows, "stream": stream, "random": random_state()})

        before = state()
        first, second = loop._validate(), loop._validate()
        assert first == second
        assert 0 < first < 2 * math.log(259)
        assert state() == before
        assert loop.engine.model.training
        seen.append(first)

    seen: list[float] = []
    recipe = save_recipe(tmp_path, stage, steps=2, data__eval_documents=3)
    train_here(Request(recipe=recipe, out=tmp_path / "run"), look)
    assert seen


def test_random_states_come_back_exactly():
    import random

    import numpy as np

    state = random_state()
    drawn = [torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1)]
    torch.rand(5)
    set_random_state(state)
    assert [torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1)] == drawn


def test_work_is_counted_by_tokens_parameters_and_gradients():
    embedding, layers = nn.Embedding(7, 4), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    layers[0].weight.requires_grad_(False)
    counter = WorkCounter(embedding, layers)
    with torch.no_grad():
        embedding(torch.zeros(2, 5, dtype=torch.int64))
    assert counter.take() == 10 * 2 * 32
    embedding(torch.zeros(1, 3, dtype=torch.int64))
    assert counter.take() == 3 * (2 * 32 + 2 * 32 + 2 * 16)
    assert counter.take() == 0


def test_a_cpu_has_no_known_peak_and_uses_memory():
    assert peak_flops(torch.device("cpu")) is None
    assert peak_bytes(torch.device("cpu")) > 50_000_000
