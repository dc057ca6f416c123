"""A model, a memory or a path that does not fit a MemoryState is refused, and the file stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.errors import StateError
from tests.core.helpers import tiny_config
from tests.core.state.memories import KEY, LAYERS, WIDTH, FakeModel, with_checkpoint_memory


def test_another_model_is_refused_by_name(tmp_path):
    made, same_shape = FakeModel(tiny_config(), "one"), FakeModel(tiny_config(), "two")
    other = FakeModel(tiny_config(), "two")
    other.fingerprint = lambda: {"config_sha256": "d", "weights_sha256": "two", "name": "models/two"}
    path = tmp_path / "mem.pt"
    with MemoryState.create(path, made, memory := made.new_memory()) as state:
        state.commit(memory)
    with MemoryState.open(path) as state:
        state.check_model(made)
        assert state.model_name == "models/one"
        for model, what in ((same_shape, "other weights"), (other, "other configuration and weights")):
            with pytest.raises(StateError, match=what) as error:
                state.load_memory(model)
            assert "models/one" in error.value.message and "models/two" in error.value.message
            assert "--model models/one" in str(error.value.hint)


def test_a_model_of_another_dtype_may_read_and_not_write(tmp_path):
    path = tmp_path / "mem.pt"
    model, half = (FakeModel(tiny_config(), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    with MemoryState.create(path, half, memory := half.new_memory()) as state:
        for _ in range(9):
            half.write(memory, 8)
        state.commit(memory)
    with MemoryState.open(path) as state:
        loaded = state.load_memory(model)
        assert torch.equal(loaded.short_term.ordered(0)[0], memory.short_term.ordered(0)[0].float())
    with MemoryState.open(path, writable=True) as state, pytest.raises(StateError, match="bfloat16") as error:
        state.load_memory(model)
    assert error.value.hint == "Add --dtype bfloat16."


def test_only_the_memory_that_continues_a_state_can_be_committed(tmp_path):
    model, path = FakeModel(tiny_config()), tmp_path / "mem.pt"
    with MemoryState.create(path, model, memory := model.new_memory()) as state:
        model.write(memory, 8)
        state.commit(memory)
        stranger = model.new_memory()
        with pytest.raises(StateError, match="keeps no journal"):
            state.commit(stranger)
        stranger.keep_journal()
        model.write(stranger, 8)
        for _ in range(2):  # too far on, then as far but not from here
            with pytest.raises(StateError, match="does not continue|has changed since"):
                state.commit(stranger)
            stranger.journal[0].clear()
        model.write(memory, 8)
        memory.short_term.load(0, *with_checkpoint_memory(model.new_memory()).short_term.ordered(0))
        model.write(memory, 8)
        before = path.read_bytes()
        with pytest.raises(StateError, match="does not continue"):
            state.commit(memory)
        assert path.read_bytes() == before and len(memory.journal[0]) == 2
    with MemoryState.open(path) as reader:
        loaded = reader.load_memory(model)
        loaded.keep_journal()
        model.write(loaded, 4)
        with pytest.raises(StateError, match="reading only"):
            reader.commit(loaded)
    MemoryState.forget(path, "s", model)
    with MemoryState.open(path, writable=True) as state, pytest.raises(StateError, match="has changed since"):
        state.commit(loaded)


def test_create_writes_nothing_before_the_first_commit(tmp_path):
    model, path = FakeModel(tiny_config()), tmp_path / "mem.pt"
    with MemoryState.create(path, model, model.new_memory()):
        pass
    assert list(tmp_path.iterdir()) == []
    with MemoryState.create(path, model, memory := model.new_memory()) as state:
        model.write(memory, 8)
        state.commit(memory)
    first = path.read_bytes()
    with pytest.raises(StateError, match="exists already"):
        MemoryState.create(path, model, model.new_memory())
    with MemoryState.create(path, model, memory := model.new_memory(), fresh=True) as state:
        model.write(memory, 4)
        assert path.read_bytes() == first
        state.commit(memory)
    with MemoryState.open(path) as state:
        assert state.created_total == 4


def test_tokens_that_cannot_be_told_apart_are_refused(tmp_path):
    model = FakeModel(tiny_config())
    memory = with_checkpoint_memory(model.new_memory())
    twice = copy.copy(memory.long_term[0].layers[0].created.gather(torch.tensor([0])))
    memory.long_term[0].append(torch.zeros(LAYERS, 1, WIDTH), torch.zeros(LAYERS, 1, KEY), twice.expand(LAYERS, 1))
    with pytest.raises(StateError, match="one creation index"):
        MemoryState.create(tmp_path / "mem.pt", model, memory)
    assert list(tmp_path.iterdir()) == []
