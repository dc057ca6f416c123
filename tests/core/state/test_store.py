"""The log against a slow reference: whatever is written, committed, reopened, compacted or forgotten is held."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.state import report
from mplus_cli.core.state.rewrite import compact, forget
from mplus_cli.core.state.store import StateStore
from mplus_cli.errors import StateError
from tests.core.state.simulator import KEY, LAYERS, WIDTH, Simulator, content_of

STEPS = st.lists(
    st.one_of(st.integers(1, 7), st.sampled_from(["commit", "reopen", "compact", "note"])), min_size=1, max_size=25
)


def make_keys(layer: int, values: np.ndarray) -> np.ndarray:
    """Keys that can be recognised: the first numbers of the value."""
    return values.view(np.float32)[:, :KEY].copy()


@settings(max_examples=40, deadline=None)
@given(
    steps=STEPS,
    seed=st.integers(0, 2**31),
    initial=st.tuples(st.integers(0, 12), st.integers(0, 9)),
    capacity=st.sampled_from([0, 5, 20]),
)
def test_the_file_holds_what_the_reference_holds(steps, seed, initial, capacity):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mem.pt")
        memory = Simulator(seed, initial, capacity)
        store = StateStore.create(path, memory.base())
        store.writer.publish()
        assert content_of(store) == memory.content()
        for step in steps:
            if isinstance(step, int):
                memory.write(step, "a" if step % 2 else "b")
                continue
            memory.commit_to(store, job=step)
            if step == "reopen":
                store.close()
                store = StateStore.open(path, writable=True)
            elif step == "compact":
                compact(store)
                assert report.dead_bytes(store.file, store.log) == 0
            with_reader = StateStore.open(path)
            assert content_of(store) == content_of(with_reader) == memory.content()
            assert with_reader.log.job == step and store.digest() == with_reader.digest()
            with_reader.close()
        store.verify()
        store.close()


def test_a_commit_costs_what_is_new(tmp_path):
    """The same write grows a large state by as much as a small one, and touches no earlier byte but a slot."""
    path = tmp_path / "mem.pt"
    memory = Simulator(1)
    store = StateStore.create(path, memory.base())
    store.writer.publish()
    growth = []
    for _ in range(150):
        memory.write(4)
        before = path.read_bytes() if len(growth) == 149 else None
        size = store.file.length
        memory.commit_to(store)
        growth.append(store.file.length - size)
    assert growth[-1] == growth[10] < 2200 and path.stat().st_size == store.file.length
    assert before and path.read_bytes()[8192 : len(before)] == before[8192:]
    store.close()


def test_the_digest_tells_content_not_layout(tmp_path):
    """Committed at once, piecewise, or compacted: one digest. Another value or order: another."""

    def written(name: str, seed: int, each: bool) -> StateStore:
        memory = Simulator(seed)
        store = StateStore.create(tmp_path / name, memory.base())
        for _ in range(12):
            memory.write(5)
            if each:
                memory.commit_to(store, job={"at": name})
        memory.commit_to(store)
        store.writer.publish()
        return store

    one, other, third = written("1.pt", 3, False), written("2.pt", 3, True), written("3.pt", 4, False)
    assert one.digest() == other.digest() != third.digest()
    size = other.file.length
    compact(other)
    assert other.digest() == one.digest() and other.file.length < size
    for store in (one, other, third):
        store.close()


@pytest.mark.parametrize("capacity", [0, 20, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_forget_leaves_nothing_of_a_source_and_everything_of_the_others(tmp_path, capacity, seed):
    path = tmp_path / "mem.pt"
    memory = Simulator(seed, (6, 4), capacity)
    store = StateStore.create(path, memory.base())
    secret: set[bytes] = set()
    for number in range(14):
        memory.write(3, ["diary", "novel", "letters"][number % 3])
        if number % 3 == 0:
            secret |= {token.value for layer in memory.journal[-1][0] for token in layer}
        memory.commit_to(store, job={"source": "diary", "at": number})
    store.writer.publish()
    of_diary = {c for part in (memory.short, memory.long) for layer in part for c, value, _ in layer if value in secret}
    assert of_diary and any(value in path.read_bytes() for value in secret)
    before = content_of(store)
    proof = forget(store, "diary", make_keys)
    store.close()

    raw = path.read_bytes()
    assert not any(value in raw for value in secret) and b"diary" not in raw
    again = StateStore.open(path)
    total, short, long = content_of(again)
    assert total == memory.created and len({len(layer) for layer in short}) == 1
    for layer in range(LAYERS):
        old_short = [token for token in before[1][layer] if token[0] not in of_diary]
        old_long = [token for token in before[2][layer] if token[0] not in of_diary]
        moved = old_short[: len(old_short) - len(short[layer])]  # the oldest surplus
        assert short[layer] == old_short[len(moved) :]
        keyed = [(*token, make_keys(layer, np.frombuffer(token[1], np.uint8)[None]).tobytes()) for token in moved]
        assert long[layer] == ((old_long + keyed)[-capacity:] if capacity else [])
    assert proof["left"] == 0 and proof["writes"] == 5 and again.log.job is None
    assert proof["values"] == sum(map(len, short)) + sum(map(len, long)) == again.values.total
    assert {s["source"] for s in report.sources(again.log)} == {"novel", "letters"}
    again.verify()
    again.close()

    with_more = StateStore.open(path, writable=True)  # the memory goes on
    with pytest.raises(StateError, match="no source 'diary'") as refused:
        forget(with_more, "diary", make_keys)
    assert "letters, novel" in str(refused.value.hint)
    with_more.close()


def test_a_rewrite_that_fails_leaves_the_state_as_it_was(tmp_path, monkeypatch):
    """The keys cannot be made, or there is no room: nothing happened, and the writer goes on."""
    path = tmp_path / "mem.pt"
    memory = Simulator(5)
    store = StateStore.create(path, memory.base())
    for number in range(9):
        memory.write(4, "ab"[number % 2])
    memory.commit_to(store)
    store.writer.publish()
    raw = path.read_bytes()

    def no_keys(layer: int, values: np.ndarray) -> np.ndarray:
        raise StateError("no model")

    with pytest.raises(StateError, match="no model"):
        forget(store, "a", no_keys)
    pwrite = os.pwrite

    def full(descriptor: int, data, at: int) -> int:
        if at > 9000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StateError, match="No room"):
        compact(store)
    monkeypatch.undo()
    assert path.read_bytes() == raw and set(os.listdir(tmp_path)) == {"mem.pt", "mem.pt.lock"}
    memory.write(2)
    memory.commit_to(store)
    assert content_of(store) == memory.content()
    store.close()
    assert os.listdir(tmp_path) == ["mem.pt"]


def test_sources_ages_and_sizes(tmp_path):
    memory = Simulator(2, (4, 0))
    store = StateStore.create(tmp_path / "mem.pt", memory.base())
    for number in range(10):
        memory.write(4, ["a", "b"][number >= 5])
        memory.commit_to(store)
    a, b = report.sources(store.log)
    assert (a["source"], a["writes"], a["tokens"], a["start"], a["end"]) == ("a", 5, 20, 0, 4)
    for entry, low, high in ((a, 0, 20), (b, 20, 40)):
        for name, part in (("short_term", memory.short), ("long_term", memory.long)):
            assert entry[name] == sum(low <= token.created < high for layer in part for token in layer)
    rows = report.ages(store.log)
    for name, part in (("short_term", memory.short), ("long_term", memory.long)):
        held = [memory.created - 1 - token.created for layer in part for token in layer]
        assert [row[name] for row in rows] == [sum(r["from"] <= age < r["to"] for age in held) for r in rows]
        assert sum(row[name] for row in rows) == len(held)
    stored = (4 * LAYERS + 40 * LAYERS) * 4 * WIDTH + (40 + 4 - 12) * LAYERS * 4 * KEY
    alive = 12 * LAYERS * 4 * WIDTH + 20 * LAYERS * 4 * (WIDTH + KEY)
    assert report.dead_bytes(store.file, store.log) == stored - alive
    store.close()


def test_values_stay_readable_after_closing_and_after_compaction(tmp_path):
    """A memory that was loaded reads its long-term values from the mapping, whatever happens at the path."""
    memory = Simulator(6)
    path = tmp_path / "mem.pt"
    store = StateStore.create(path, memory.base())
    for _ in range(12):
        memory.write(4)
        memory.commit_to(store)
    store.writer.publish()
    reader = StateStore.open(path)
    reader.close()
    compact(store)
    path.unlink()
    expected = memory.long[1]
    for held in (reader, store):
        taken = held.take(1, held.log.long(1))
        assert [row.tobytes() for row in taken] == [token.value for token in expected]
    store.close()
