"""Forgetting a source: nothing of it is left in the file, and the memory goes on."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.errors import StateError
from tests.core.helpers import random_ids, tiny_model
from tests.core.state.memories import LAYERS, FakeModel, content, inject, recall_config, same, with_checkpoint_memory


@pytest.mark.parametrize("capacity", [80, 0])
def test_forget(tmp_path, model, capacity):
    """Nothing of the source is left, moved tokens have the keys the model gives them, and the memory goes on."""
    if not capacity:
        model = tiny_model(long_term_capacity=0, retrieval_budget=0)
    path = tmp_path / "mem.pt"
    with MemoryState.create(path, model, memory := model.new_memory(seed=3)) as state:
        for number in range(12):
            inject(model, memory, [number], ["book.txt", "diary.txt"][number % 2])
        state.commit(memory)
    secret = {c for n in range(1, 12, 2) for c in range(8 * n, 8 * n + 8)}
    values, created = memory.short_term.ordered(0)
    rows = [
        values[layer, i].numpy().tobytes()
        for layer in range(LAYERS)
        for i in range(32)
        if int(created[layer, i]) in secret
    ]
    assert rows and all(row in path.read_bytes() for row in rows)
    if capacity:
        with pytest.raises(StateError, match="takes the model"):
            MemoryState.forget(path, "diary.txt")
    report = MemoryState.forget(path, "diary.txt", model)
    raw = path.read_bytes()
    assert not any(row in raw for row in rows) and b"diary" not in raw
    assert report["left"] == 0 and report["writes"] == 6 and report["removed"] > 0
    assert (report["moved"] > 0, report["dropped"] > 0) == ((True, False) if capacity else (False, True))
    with MemoryState.open(path, writable=True) as state:
        after = state.load_memory(model)
        fill = after.short_term.fill[0]
        left, left_created = after.short_term.ordered(0)
        assert not secret & set(left_created.flatten().tolist()) and 0 < fill < 32
        for layer in range(LAYERS):
            kept = [i for i in range(32) if int(created[layer, i]) not in secret]
            assert torch.equal(left[layer], values[layer, kept[-fill:]])
            if capacity:
                part = after.long_term[0].layers[layer]
                held, order = part.take(layer, part.all_positions())
                assert not secret & set(order.tolist())
                keys = torch.cat(list(part.keys.views()))
                assert torch.allclose(keys, model.memory_keys(layer, held), atol=1e-5)
                assert order[len(order) - len(kept) + fill :].tolist() == created[layer, kept[:-fill]].tolist()
        model(random_ids(1, 5), memory=after)
        inject(model, after, range(20, 30))
        state.commit(after)
        assert state.summary()["short_term"]["tokens"] == 32
    with MemoryState.open(path) as state:
        assert same(content(state.load_memory(model)), content(after))
        with pytest.raises(StateError, match="no source"):
            MemoryState.forget(path, "diary.txt", model)


def test_forget_under_the_published_eviction_rule(tmp_path):
    model = FakeModel(recall_config())
    path = tmp_path / "mem.pt"
    with MemoryState.create(path, model, memory := with_checkpoint_memory(model.new_memory())) as state:
        for number in range(11):
            model.write(memory, 8, source="ab"[number % 2])
        state.commit(memory)
    assert memory.long_term[0].pending
    MemoryState.forget(path, "a", model)
    with MemoryState.open(path, writable=True) as state:
        after = state.load_memory(model)
        store = after.long_term[0]
        assert store.pending == 0 and store.writes_since_merge == memory.long_term[0].writes_since_merge
        for part in store.layers:
            assert len(part.recall_frequency) == len(part)
        for _ in range(9):
            model.write(after, 8)
        state.commit(after)
        assert same(content(MemoryState.open(path).load_memory(model)), content(after))
