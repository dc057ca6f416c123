"""What goes into a MemoryState comes out, whatever the commits, restarts and compactions between."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.state.memory_state import MemoryState
from tests.core.helpers import MEMORY, random_ids, tiny_config
from tests.core.state.memories import (
    CONFIGS,
    KEY,
    LAYERS,
    WIDTH,
    FakeModel,
    content,
    inject,
    note,
    same,
    with_checkpoint_memory,
)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(CONFIGS)),
    before=st.integers(0, 12),
    steps=st.lists(st.one_of(st.integers(1, 8), st.sampled_from("crcp")), min_size=5, max_size=30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    values=st.sampled_from(["model", "model", "bfloat16", "float8", "int8"]),
    checkpoint=st.booleans(),
)
def test_a_reloaded_memory_is_the_memory(tmp_path_factory, kind, before, steps, dtype, values, checkpoint):
    """Write, commit, reopen and compact at will: equal to a memory that never saw a file."""
    model = FakeModel(CONFIGS[kind], dtype=dtype, values="model" if dtype == torch.float16 else values)
    path = tmp_path_factory.mktemp("state") / "mem.pt"
    plain, filed = (model.new_memory(seed=5) for _ in range(2))
    if checkpoint and dtype == torch.float32:
        plain, filed = with_checkpoint_memory(plain), with_checkpoint_memory(filed)
    state = MemoryState.create(path, model, filed)
    for step in [*[8] * before, *steps, "r"]:
        if isinstance(step, int):
            model.write(plain, step)
            model.write(filed, step)
            continue
        state.commit(filed, job=step)
        assert same(content(filed), content(plain))
        if step == "p":
            state.compact()
            assert state.dead_bytes == 0 and same(content(filed), content(plain))
        if step == "r":
            state.close()
            assert same(content(filed), content(plain))  # a closed state's memory reads on
            state = MemoryState.open(path, writable=True)
            filed = state.load_memory(model)
            assert same(content(filed), content(plain))
    for memory in filed.long_term:
        assert all(store.values.start == store.values.end == store.mapped_end for store in memory.layers)
    state.verify()
    state.close()


def test_an_interrupted_injection_equals_an_uninterrupted_one(tmp_path, model):
    """Same digest, same logits, whatever the commits and restarts between."""
    with MemoryState.create(tmp_path / "whole.pt", model, memory := model.new_memory(seed=7)) as whole:
        inject(model, memory, range(20))
        whole.commit(memory)
        expected, digest = memory, whole.digest()
    for start in range(0, 20, 6):
        path = tmp_path / "parts.pt"
        if start:
            state = MemoryState.open(path, writable=True)
            assert state.job == {"next": start}
            memory = state.load_memory(model)
        else:
            state = MemoryState.create(path, model, memory := model.new_memory(seed=7))
        inject(model, memory, range(start, min(start + 6, 20)))
        state.commit(memory, job={"next": start + 6})
        state.close()
    with MemoryState.open(path) as state:
        assert state.digest() == digest
        loaded = state.load_memory(model)
    assert same(content(loaded), content(expected))
    question = random_ids(1, 9, seed=99)
    logits = [model(question, memory=each).logits for each in (loaded, expected)]
    assert torch.allclose(*logits, atol=1e-5)
    assert len(loaded.last_retrieval) == LAYERS and loaded.journal is None


def test_another_seed_or_text_gives_another_digest(tmp_path, model):
    digests = set()
    for name, seed, numbers in (
        ("a", 1, range(6)),
        ("b", 2, range(6)),
        ("c", 1, [0, 1, 2, 3, 5, 4]),
        ("d", 1, range(6)),
    ):
        with MemoryState.create(tmp_path / name, model, memory := model.new_memory(seed=seed)) as state:
            inject(model, memory, numbers)
            state.commit(memory)
            digests.add(state.digest())
    assert len(digests) == 3


def test_provenance_sources_and_summary(tmp_path, model):
    path = tmp_path / "mem.pt"
    with MemoryState.create(path, model, memory := model.new_memory(seed=3)) as state:
        inject(model, memory, range(10))
        inject(model, memory, range(10, 14), "notes.md")
        state.commit(memory, job={"done": False})
    with MemoryState.open(path) as state:
        found = state.provenance(memory.short_term.created[0, 0])
        assert found == [
            note(int(c) // 8, "book.txt" if c < 80 else "notes.md") for c in memory.short_term.created[0, 0]
        ]
        assert state.provenance([-1, 14 * 8]) == [None, None]
        book, notes = state.sources()
        assert (book["source"], book["writes"], book["tokens"], book["start"], book["end"]) == (
            "book.txt",
            10,
            160,
            0,
            1000,
        )
        assert notes["time"] == "2025-01-01T00:13:00+00:00"
        assert book["short_term"] + notes["short_term"] == 32 * LAYERS
        assert book["long_term"] + notes["long_term"] == 80 * LAYERS
        summary = state.summary()
        assert summary["short_term"] == {"tokens": 32, "capacity": 32}
        assert summary["long_term"] == {"tokens": 80, "capacity": 80, "evicted": 0, "per_layer": None}
        assert (summary["writes"], summary["tokens"], summary["commits"]) == (14, 224, 1)
        assert summary["memory_tokens_created"] == 112 and summary["file_bytes"] == path.stat().st_size
        assert summary["model"] == model.fingerprint() and summary["seed"] == 3 and summary["job"] == {"done": False}


def test_what_a_session_injected_can_be_committed_later(tmp_path):
    """Loaded from a reader, written to, and committed once the state is opened for writing."""
    model, path = FakeModel(tiny_config()), tmp_path / "mem.pt"
    with MemoryState.create(path, model, memory := model.new_memory()) as state:
        for _ in range(9):
            model.write(memory, 8)
        state.commit(memory)
    with MemoryState.open(path) as reader:
        session = reader.load_memory(model)
        session.keep_journal()
        for _ in range(5):
            model.write(session, 8)
        with MemoryState.open(path, writable=True) as state:
            state.commit(session)
    with MemoryState.open(path) as state:
        assert same(content(state.load_memory(model)), content(session))


def test_a_memory_that_was_filled_before_keeps_its_provenance(tmp_path):
    """`create` takes over what a memory holds already, and the notes of its journal."""
    model = FakeModel(tiny_config())
    memory = model.new_memory(2, seed=4)
    memory.keep_journal()
    for number in range(12):
        for row in (0, 1):
            model.write(memory, 8 - row, row, source=f"{number}-{row}")
    for row in (0, 1):
        with MemoryState.create(tmp_path / f"{row}.pt", model, memory, row=row) as state:
            model.write(memory, 3, row, source="last")
            state.commit(memory)
    for row in (0, 1):
        with MemoryState.open(tmp_path / f"{row}.pt") as state:
            assert same(content(state.load_memory(model)), content(memory, row))
            assert [s["source"] for s in state.sources()] == [*(f"{n}-{row}" for n in range(12)), "last"]


def test_memory_use_and_file_growth_are_flat(tmp_path):
    """After a commit long-term values live in the file; a write costs its own tokens, dropped keys and an index."""
    model, path = FakeModel(tiny_config(long_term_capacity=4000)), tmp_path / "mem.pt"
    grown = []
    with MemoryState.create(path, model, memory := model.new_memory()) as state:
        for _ in range(60):
            model.write(memory, 8)
            grown.append(state.commit(memory))
    assert len(set(grown[10:])) == 1 and grown[-1] < 8 * LAYERS * (4 * WIDTH + 4 * KEY + 12) + 1600
    for store in memory.long_term[0].layers:
        assert store.values.start == store.values.end and len(store.values._blocks) <= 1


# -- the format as the README documents it -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["oldest", "short-term-only"])
def test_the_reader_in_the_readme_reads_what_load_memory_loads(tmp_path, dtype, kind):
    readme = Path(__file__).parents[3] / "README.md"
    code = re.search(r"```python\n(def read_memory\(.*?)```", readme.read_text(), re.DOTALL)
    assert code, "the README shows no reader"
    imports = "import struct\nimport numpy as np\nfrom safetensors.numpy import load\n"
    names: dict = {}
    exec(imports + code[1], names)
    model, path = FakeModel(CONFIGS[kind], dtype=dtype), tmp_path / "mem.pt"
    memory = model.new_memory() if dtype != torch.float32 else with_checkpoint_memory(model.new_memory())
    with MemoryState.create(path, model, memory) as state:
        for number in range(20):
            model.write(memory, 5)
            if number % 3 == 0:
                state.commit(memory)
                if number == 9:
                    state.compact()
        state.commit(memory)
    values, created = memory.short_term.ordered(0)
    for layer, (short, long) in enumerate(names["read_memory"](path)):
        assert list(short) == created[layer].tolist()
        assert np.array_equal(as_float(np.array(list(short.values()))), values[layer].float())
        assert bool(long) == bool(memory.long_term)
        if long:
            part = memory.long_term[0].layers[layer]
            held, order = part.take(layer, part.all_positions())
            read_order, read_values, read_keys = (np.array(column) for column in zip(*long, strict=True))
            assert np.array_equal(read_order, order) and np.array_equal(as_float(read_values), held.float())
            assert np.array_equal(as_float(read_keys), torch.cat(list(part.keys.views())).float())


def as_float(array: np.ndarray) -> np.ndarray:
    """bfloat16 is stored as its sixteen bits."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


def test_constants_of_the_helpers_are_those_of_the_configuration():
    config = tiny_config()
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (LAYERS, WIDTH)
    assert (MEMORY["short_term_size"], MEMORY["retriever_size"]) == (32, KEY)
