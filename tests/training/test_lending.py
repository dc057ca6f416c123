"""Long-term memories lent within a batch: all of the others, around what is a row's own, and only for a while."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mplus_cli.core.memory import Memory
from mplus_cli.training.contexts import write_contexts
from mplus_cli.training.lending import APART, lent_stores
from mplus_cli.training.searching import search
from tests.training.helpers import documents, tiny_memory_model, tiny_recipe


@pytest.fixture(scope="module")
def model():
    return tiny_memory_model(tiny_recipe(3))


@pytest.fixture
def memory(model):
    memory = Memory(model.config, 3, [0, 1, 2])
    write_contexts(model, memory, [example.contexts for example in documents(3, [9, 7, 8])])
    return memory


def contents(memory: Memory, row: int) -> list[tuple[torch.Tensor, ...]]:
    stores = memory.long_term[row].layers
    return [
        (s.fetch(i, s.all_positions()), s.all_created(), s.keys.gather(s.all_positions())) for i, s in enumerate(stores)
    ]


def test_every_row_finds_its_own_tokens_and_those_of_all_others(memory):
    own = [contents(memory, row) for row in range(3)]
    with lent_stores(memory, np.random.default_rng(0)):
        for row in range(3):
            for layer, (values, created, keys) in enumerate(contents(memory, row)):
                assert len(created) == sum(len(one[layer][1]) for one in own) and len(created.unique()) == len(created)
                mine = (created >= 0) & (created < APART)
                for found, expected in zip((values[mine], created[mine], keys[mine]), own[row][layer], strict=True):
                    assert torch.equal(found, expected)
                others = torch.cat([own[other][layer][0] for other in ((row + 1) % 3, (row + 2) % 3)])
                assert torch.equal(values[~mine].sort(0).values, others.sort(0).values)


def test_every_row_has_its_own_order_and_all_orders_occur(memory):
    rng, orders = np.random.default_rng(0), set()
    for _ in range(40):
        with lent_stores(memory, rng):
            found = [contents(memory, row)[0][1] for row in range(3)]
        orders.add(tuple(int((created >= APART).sum()) for created in found))
    after = [sorted({order[row] for order in orders}) for row in range(3)]
    assert all(seen[0] == 0 and len(seen) == 4 for seen in after)  # none, either, or both of the others come after
    assert len({tuple(a == 0 for a in order) for order in orders}) > 2


def test_afterwards_memories_are_as_before_also_when_the_block_fails(memory):
    before, own = memory.long_term, [contents(memory, row) for row in range(3)]
    with pytest.raises(RuntimeError), lent_stores(memory, np.random.default_rng(0)):
        raise RuntimeError
    assert memory.long_term is before
    for row in range(3):
        for found, expected in zip(contents(memory, row), own[row], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_is_asked_for_by_span_is_the_rows_own(model, memory):
    """Creation indices of the others are the same numbers; they must not pass for the row's own."""
    queries = torch.randn(1, 4, model.config.retriever_size)
    valid = torch.ones(1, 4, dtype=torch.bool)
    row_own = contents(memory, 1)[0]
    span = (int(row_own[1][0]), int(row_own[1][0]) + 1)
    with lent_stores(memory, np.random.default_rng(0)):
        values, created = search(model, memory.long_term[1], 0, queries, valid, [span])
    assert int((created == span[0]).sum()) == 1
    assert torch.equal(values[created == span[0]][0], row_own[0][0])


def test_a_single_row_has_nobody_to_lend_from(model):
    memory = Memory(model.config, 1, [0])
    write_contexts(model, memory, [documents(1, [8])[0].contexts])
    before = memory.long_term
    with lent_stores(memory, np.random.default_rng(0)):
        assert memory.long_term is before
