"""Short- and long-term memory against slow references, and the invariants of both."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.long_term_memory import BlockList, LongTermMemory
from mplus_cli.core.memory import Memory
from mplus_cli.core.short_term_memory import ShortTermMemory
from tests.core.helpers import tiny_config

LAYERS, WIDTH = 3, 64


def token_values(created: torch.Tensor) -> torch.Tensor:
    """A recognisable value per (layer, creation index): [L, m] -> [L, m, d]."""
    layer = torch.arange(len(created))[:, None]
    return (created * 10.0 + layer)[..., None].expand(-1, -1, WIDTH).contiguous()


def keys_of(layer: int, rows: torch.Tensor) -> torch.Tensor:
    return rows[..., :16] + layer


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 8), min_size=1, max_size=30), seed=st.integers(0, 2**31))
def test_short_term_memory_equals_a_list_of_survivors(counts, seed):
    """Whatever the writes: constant size, chronological order, and nothing lost: every token is kept or returned."""
    pool = ShortTermMemory(1, LAYERS, 32, WIDTH, torch.float32, torch.device("cpu"))
    alive = [[] for _ in range(LAYERS)]
    now = 0
    for count in counts:
        created = torch.arange(now, now + count).expand(LAYERS, -1)
        dropped = pool.append(0, token_values(created), now, seed)
        for layer in range(LAYERS):
            gone = dropped.created[layer].tolist()
            assert gone == sorted(gone) and set(gone) <= set(alive[layer])
            assert torch.equal(dropped.values, token_values(dropped.created))
            alive[layer] = [c for c in alive[layer] if c not in gone] + created[layer].tolist()
        now += count
        values, order = pool.ordered(0)
        assert order.tolist() == alive
        assert torch.equal(values, token_values(order))
        assert torch.equal(pool.newest(0, 8), values[:, -8:])
    assert pool.fill == [min(now, 32)]


def test_which_tokens_a_write_drops_does_not_depend_on_slots():
    """A pool that was saved and loaded (other slots, same content) drops the same tokens."""
    one, other = (ShortTermMemory(1, LAYERS, 32, WIDTH, torch.float32, torch.device("cpu")) for _ in range(2))
    for step in range(12):
        created = torch.arange(8 * step, 8 * step + 8).expand(LAYERS, -1)
        first = one.append(0, token_values(created), 8 * step, seed=5)
        other.load(0, *other.ordered(0))
        second = other.append(0, token_values(created), 8 * step, seed=5)
        assert torch.equal(first.created, second.created)


def test_drop_is_uniform_and_differs_by_layer_and_seed():
    """Survivors of a write after t writes follow K (1 - K/N)^t (MemoryLLM eq. 3)."""
    layers, size, count, steps = 400, 32, 8, 6
    left = torch.zeros(steps)
    pool = ShortTermMemory(1, layers, size, 1, torch.float32, torch.device("cpu"))
    for step in range(4 + steps):
        pool.append(0, torch.zeros(layers, count, 1), count * step, seed=1)
        if step >= 4:
            watched = (pool.created[0] >= 24) & (pool.created[0] < 32)  # the last write of the filling phase
            left[step - 4] = watched.float().sum(-1).mean()
    expected = count * (1 - count / size) ** torch.arange(1, steps + 1)
    assert torch.allclose(left, expected, atol=0.25)
    rows = pool.created[0].sort(-1).values
    assert len({tuple(row.tolist()) for row in rows}) > 0.95 * layers
    again = ShortTermMemory(1, layers, size, 1, torch.float32, torch.device("cpu"))
    for step in range(4 + steps):
        again.append(0, torch.zeros(layers, count, 1), count * step, seed=2)
    assert not torch.equal(again.created[0].sort(-1).values, rows)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=8), cut=st.floats(0, 1), seed=st.integers(0, 99))
def test_block_list_equals_one_tensor(sizes, cut, seed):
    torch.manual_seed(seed)
    blocks, whole = BlockList((2,), torch.float32, torch.device("cpu")), torch.empty(0, 2)
    blocks.block = 1024
    for size in sizes:
        rows = torch.randn(size, 2)
        blocks.append(rows)
        whole = torch.cat([whole, rows])
    start = int(cut * len(whole))
    blocks.drop_before(start)
    live = list(blocks.views())
    assert torch.equal(torch.cat(live) if live else whole[:0], whole[start:])
    if start < len(whole):
        index = torch.randint(start, len(whole), (50,))
        assert torch.equal(blocks.gather(index), whole[index])


def test_appending_never_moves_what_is_stored():
    store = BlockList((4,), torch.float32, torch.device("cpu"))
    size = store.block = 1024
    store.append(torch.randn(10, 4))
    address = next(iter(store.views())).data_ptr()
    for _ in range(30):
        store.append(torch.randn(size // 7, 4))
    assert next(iter(store.views())).data_ptr() == address
    store.drop_before(size + 5)
    assert sum(len(view) for view in store.views()) == store.end - size - 5
    assert len(store._blocks) == -(-store.end // size) - 1  # the dead block is freed


def written(config, writes: int, seed: int = 0) -> Memory:
    memory = Memory(config, 1, seed)
    memory.keep_journal()
    for step in range(writes):
        created = torch.arange(8 * step, 8 * step + 8).expand(LAYERS, -1)
        memory.append(0, token_values(created), keys_of)
    return memory


@pytest.mark.parametrize("eviction", ["oldest", "recall_frequency"])
def test_long_term_memory_equals_replaying_the_journal(eviction):
    """Both rules against a slow replay: what is stored, in which order, with which values and keys."""
    config = tiny_config(eviction=eviction, merge_every=3, initial_recall_frequency=4)
    memory = written(config, 60)
    records = memory.journal[0]
    for layer in range(LAYERS):
        arrivals = [c for record in records for c in record.dropped[layer].tolist()]
        store = memory.long_term[0].layers[layer]
        values, created = store.take(layer, store.all_positions())
        if eviction == "oldest":
            expected = arrivals[-config.long_term_capacity :]
        else:
            # Merges happen every third write; a cohort survives its own and the next two (4 -> 3 -> 2 -> 1 -> out).
            per_write, merges = [r.dropped.shape[1] for r in records], 60 // 3
            spent = sum(per_write[: 3 * (merges - 3)])
            expected = arrivals[spent:]
        assert created.tolist() == expected
        assert torch.equal(values[:, 0], created * 10.0 + layer)
        assert torch.equal(torch.cat(list(store.keys.views())), keys_of(layer, values))


def test_published_eviction_keeps_a_store_that_would_fall_below_the_budget():
    config = tiny_config(eviction="recall_frequency", merge_every=1, initial_recall_frequency=1, retrieval_budget=16)
    memory = written(config, 12)
    assert len(memory.long_term[0]) == 8 * 8 and memory.long_term[0].pending == 0  # every merge would empty it


def test_published_eviction_of_scattered_rows_rebuilds_the_layer():
    """Recall frequencies of a loaded checkpoint need not be in order of arrival."""
    config = tiny_config(eviction="recall_frequency", merge_every=1, initial_recall_frequency=9, retrieval_budget=4)
    store = LongTermMemory(config, LAYERS, WIDTH, torch.float32, torch.device("cpu"))
    created = torch.arange(-20, 0).expand(LAYERS, -1)
    values = token_values(created)
    recall = [torch.where(torch.arange(20) % 2 == 0, 1.0, 5.0)] * LAYERS
    store.load(list(values), [keys_of(i, values[i]) for i in range(LAYERS)], list(created), recall)
    fresh = torch.arange(0, 8).expand(LAYERS, -1)
    store.append(token_values(fresh), torch.zeros(LAYERS, 8, 16), fresh)
    for layer in range(LAYERS):
        rows, left = store.layers[layer].take(layer, store.layers[layer].all_positions())
        assert left.tolist() == [c for c in range(-20, 0) if c % 2] + list(range(8))
        assert torch.equal(rows[:, 0], left * 10.0 + layer)


def test_retrieval_is_top_k_oldest_first():
    memory = written(tiny_config(), 40)
    store = memory.long_term[0]
    scores = torch.rand(len(store), generator=torch.Generator().manual_seed(0))
    found = store.retrieve(1, scores)
    assert found.created.tolist() == sorted(found.created.tolist())
    assert sorted(found.scores.tolist()) == sorted(scores.topk(16).values.tolist())
    values, created = store.layers[1].take(1, found.positions)
    assert torch.equal(created, found.created) and torch.equal(values[:, 0], created * 10.0 + 1)


class _File:
    """Values of committed tokens, from 'somewhere else', marked by a sign."""

    def rows(self, layer: int, created: torch.Tensor) -> torch.Tensor:
        return -token_values(created[None].expand(layer + 1, -1))[layer]


def test_mapped_values_serve_what_was_stored_before_and_free_its_memory():
    memory = written(tiny_config(), 20)
    store = memory.long_term[0]
    before = len(store)
    store.map_values(_File())
    assert all(not layer.values._blocks for layer in store.layers)
    for step in range(20, 24):
        memory.append(0, token_values(torch.arange(8 * step, 8 * step + 8).expand(LAYERS, -1)), keys_of)
    rows, created = store.layers[2].take(2, store.layers[2].all_positions())
    old = len(store) - 4 * 8
    assert before > 80 - 32 and torch.equal(rows[:old, 0], -(created[:old] * 10.0 + 2))
    assert torch.equal(rows[old:, 0], created[old:] * 10.0 + 2)
