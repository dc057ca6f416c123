"""The order of documents: one for all processes, another in each epoch, each with one process; exact resume."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.errors import UsageError
from mplus_cli.training import documents
from mplus_cli.training.documents import DocumentStream
from tests.training.corpora import number_of, sources, text, write_files, write_rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_ROWS", 4)


def epoch(stream: DocumentStream, group: int = 3) -> list[int]:
    """Numbers of the documents that are left in a stream's epoch."""
    here, found = stream.epoch, []
    while stream.epoch == here:
        found += [number_of(document.text) for document in stream.take(group)]
    return found


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 11), min_size=1, max_size=5).filter(any),
    world=st.integers(1, 7),
    seed=st.integers(0, 3),
)
def test_each_document_of_an_epoch_goes_to_exactly_one_process(sizes, world, seed):
    with tempfile.TemporaryDirectory() as folder:
        opened = sources(write_files(Path(folder), sizes))
        streams = [DocumentStream(opened, rank, world, seed) for rank in range(world)]
        for number in range(3):
            shares = [epoch(stream) for stream in streams]
            assert sorted(sum(shares, [])) == list(range(sum(sizes))), f"epoch {number}"
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_order_is_drawn_by_seed_and_epoch(tmp_path):
    opened = sources(write_files(tmp_path, [30, 30, 30]))
    first, same, other = (DocumentStream(opened, 0, 1, seed) for seed in (1, 1, 2))
    orders = [epoch(first), epoch(first), epoch(other)]
    assert [epoch(same), epoch(same)] == orders[:2]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(90)) for order in orders)
    write_files(tmp_path / "single", [1] * 30)
    files = DocumentStream(sources(tmp_path / "single"), 0, 1, 1)
    assert epoch(files) != epoch(files), "files change places, too"
    halves = [set(epoch(DocumentStream(opened, 0, 2, seed))) for seed in (1, 2)]
    assert halves[0] != halves[1], "the shares of the processes are drawn too"


def test_memory_holds_one_block(tmp_path, monkeypatch):
    """In a file that goes on for ever the first documents come at once, none from beyond its block."""
    opened = sources(write_files(tmp_path, [100]))
    numbers = epoch(DocumentStream(opened, 0, 1, 0))
    assert all(number // 4 == place // 4 for place, number in enumerate(numbers))
    assert numbers != sorted(numbers)
    monkeypatch.setattr(documents, "BLOCK_CHARACTERS", 120)
    numbers = epoch(DocumentStream(opened, 0, 1, 0))
    assert all(number // 2 == place // 2 for place, number in enumerate(numbers)), "long texts make short blocks"


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 2),
    world=st.integers(1, 3),
    steps=st.integers(0, 25),
    broken=st.booleans(),
    data=st.data(),
)
def test_going_on_from_a_saved_position_is_exact(sizes, world, steps, broken, data):
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), sizes)
        if broken:
            rows = [{"text": text(900)}, "{broken", {"text": text(901)}, {"text": 5}, "[]", {"text": text(902)}, "{"]
            write_rows(Path(folder) / "x.jsonl", rows)
        opened = sources(Path(folder))
        rank = data.draw(st.integers(0, world - 1))
        stream = DocumentStream(opened, rank, world, 5)
        for _ in range(steps):
            stream.take(2)
        state = json.loads(json.dumps(stream.state_dict()))
        resumed = DocumentStream(opened, rank, world, 5)
        resumed.load_state_dict(state)
        for _ in range(20):
            assert resumed.take(2) == stream.take(2)
            assert (resumed.bad.count, resumed.state_dict()) == (stream.bad.count, stream.state_dict())


def test_broken_rows_are_counted_and_named(tmp_path):
    rows = [{"text": text(1)}, "{broken", {"text": None}, "", {"text": "half a pair \ud800"}, {"text": text(2)}]
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.txt").write_bytes(b"not read: the folder has rows")
    stream = DocumentStream(sources(tmp_path), 0, 1, 0)
    assert sorted(epoch(stream)) == [1, 2]
    assert stream.bad.count == 3
    assert [line.split(": ")[0].split("a.jsonl:")[1] for line in stream.bad.named] == ["2", "3", "5"]
    epoch(stream)
    assert stream.bad.count == 6, "of all epochs"


def test_unreadable_texts_are_counted_like_rows(tmp_path):
    (tmp_path / "one.txt").write_text(text(1))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.md").write_bytes(bytes(range(256)) * 4)
    stream = DocumentStream(sources(tmp_path), 0, 1, 0)
    assert epoch(stream) == [1]
    assert stream.bad.count == 2
    assert all("empty file" in line or "binary" in line for line in stream.bad.named)


def test_documents_are_found_again_by_their_places(tmp_path):
    opened = sources(write_files(tmp_path, [7, 5]))
    stream = DocumentStream(opened, 0, 1, 0)
    met = stream.take(20) + stream.take(20) + stream.take(3)
    assert Counter(document.place.epoch for document in met) == {0: 12, 1: 3}
    chosen = met[::-2]
    assert DocumentStream(opened, 0, 1, 0).reread(document.place for document in chosen) == chosen
    write_rows(tmp_path / "0.jsonl", ["{broken"] * 7)
    with pytest.raises(UsageError, match="0.jsonl has changed"):
        stream.reread([document.place for document in chosen])


def test_a_document_is_known_by_its_text(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two", "id": "0"}, {"text": "one", "id": "1"}])
    ids = {document.text: document.id for document in DocumentStream(sources(tmp_path), 0, 1, 0).take(3)}
    assert len(set(ids.values())) == len(ids) == 2
