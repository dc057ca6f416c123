"""MemoryState with real memories and a small model: what goes in comes out, and a wrong use is refused."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.memory import Memory
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.errors import StateError
from tests.core.helpers import MEMORY, random_ids, tiny_config, tiny_model

LAYERS, WIDTH, KEY = 3, 64, 16


class FakeModel:
    """What MemoryState needs of a model, without the arithmetic."""

    def __init__(self, config, name: str = "fake", dtype: torch.dtype = torch.float32, values: str = "model") -> None:
        self.values = values
        self.config, self.name, self.dtype, self.device = config, name, dtype, torch.device("cpu")

    def fingerprint(self) -> dict[str, str]:
        return {"config_sha256": "c", "weights_sha256": self.name, "name": f"models/{self.name}"}

    def new_memory(
        self, batch_size: int = 1, seed: int = 0, initial: str = "empty", values: str | None = None
    ) -> Memory:
        return Memory(self.config, batch_size, seed, self.dtype, values=values or self.values)

    def memory_keys(self, layer: int, rows: torch.Tensor) -> torch.Tensor:
        return rows[..., :KEY] * (layer + 1)

    def write(self, memory: Memory, count: int, row: int = 0, source: str = "s") -> None:
        """A write of `count` random tokens, a function of the memory's seed and length."""
        created = memory.created_total[row]
        random = torch.Generator().manual_seed(1000 * memory.seeds[row] + created)
        tokens = torch.randn(LAYERS, count, WIDTH, generator=random).to(self.dtype)
        keys = self.memory_keys if self.config.has_long_term_memory else None
        note = {"source": source, "sha256": f"sha of {source}", "start": created, "end": created + count, "tokens": 2}
        memory.append(row, tokens, keys, note)


def content(memory: Memory, row: int = 0) -> list[torch.Tensor]:
    """Everything in a memory, in order."""
    out = list(memory.short_term.ordered(row))
    for store in memory.long_term[row : row + 1]:
        for layer, part in enumerate(store.layers):
            values, created = part.take(layer, part.all_positions())
            keys = torch.cat([torch.empty(0, KEY), *(view.float() for view in part.keys.views())])
            out += [values, created, keys]
            if store.config.eviction == "recall_frequency":
                out.append(part.recall_frequency)
        out.append(torch.tensor([store.pending, store.writes_since_merge]))
    return [*out, torch.tensor([memory.created_total[row], memory.seeds[row]])]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def recall_config(**more):
    rule = {"eviction": "recall_frequency", "merge_every": 3, "initial_recall_frequency": 3.0, "fill_rule": "tile"}
    return tiny_config(**(rule | {"retrieval_budget": 4} | more))


def with_checkpoint_memory(memory: Memory) -> Memory:
    """What a published checkpoint brings: a full short-term memory, and long-term tokens in no order."""
    random = torch.Generator().manual_seed(1)
    tokens = memory.codec.round(torch.randn(LAYERS, 32, WIDTH, generator=random))
    memory.short_term.load(0, tokens, torch.arange(-32, 0).expand(LAYERS, -1))
    if memory.long_term:
        created = [-33 - torch.randperm(20, generator=random) for _ in range(LAYERS)]
        values = [memory.codec.round(torch.randn(20, WIDTH, generator=random)) for _ in range(LAYERS)]
        recall = [torch.randint(1, 4, (20,), generator=random).float() for _ in range(LAYERS)]
        memory.long_term[0].load(values, [v[:, :KEY].clone() for v in values], created, recall)
    memory.changed()
    return memory


CONFIGS = {
    "oldest": tiny_config(),
    "recall": recall_config(),
    "short-term-only": tiny_config(long_term_capacity=0, retrieval_budget=0),
}


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


# -- with a model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def note(number: int, source: str = "book.txt") -> dict:
    return {
        "source": source,
        "sha256": "ab" * 32,
        "start": 100 * number,
        "end": 100 * number + 100,
        "tokens": 16,
        "time": f"2025-01-01T00:{number:02}:00+00:00",
    }


def inject(model, memory: Memory, numbers, source: str = "book.txt") -> None:
    for number in numbers:
        model.inject(random_ids(1, 16, seed=number), memory, notes=[note(number, source)])


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
