"""Files that must be refused, each with a message that says which and what to do."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from mplus_cli.core.state.file import StateFile
from mplus_cli.core.state.frame import Block
from mplus_cli.core.state.store import StateStore
from mplus_cli.core.state.superblock import FORMAT_VERSION, SLOT_SIZE, Slot
from mplus_cli.core.state.writer import StateWriter
from mplus_cli.errors import StateError
from tests.core.state.simulator import LAYERS, Simulator
from tests.core.state.state_files import five_commits, refused, use, verify


def regions(path: Path) -> dict[str, tuple[int, int, str]]:
    """Every kind of region: name -> (first byte, end, what the message says)."""
    file = StateFile.open(path)
    out = {"slot 0": (0, SLOT_SIZE, "superblock slot 0"), "slot 1": (SLOT_SIZE, 2 * SLOT_SIZE, "superblock slot 1")}
    for frame in (file.frames[0], file.frames[2], file.frames[-1]):
        payload, name = frame.at + 64, frame.name
        index_at = frame.keys_at + frame.keys.size
        raw = path.read_bytes()
        out |= {
            f"header of {name}": (frame.at, payload, f"the header of {name}"),
            f"tensor table of {name}": (payload, frame.values_at, f"the index of {name}"),
            f"values of {name}": (frame.values_at, frame.keys_at, "the value of"),
            f"keys of {name}": (frame.keys_at, index_at, f"the keys of {name}"),
            f"index of {name}": (index_at, frame.end, f"the index of {name}"),
        }
        notes = raw.find(b'{"notes"', index_at, frame.end)
        out[f"provenance of {name}"] = (notes, frame.end, f"the index of {name}")
    file.close()
    return out


def test_a_flipped_byte_is_refused_wherever_it_is(state):
    """First, last and three bytes between of every kind of region; no message names another region."""
    path, memory = state
    sound = path.read_bytes()
    assert use(path) == memory.content()
    random = np.random.default_rng(0)
    for name, (first, end, says) in regions(path).items():
        assert end > first, name
        for at in {first, end - 1, *random.integers(first, end, 3).tolist()}:
            raw = bytearray(sound)
            raw[at] ^= 0xFF
            path.write_bytes(raw)
            assert says in refused(path).message, (name, at)
            refused(path, verify)
    path.write_bytes(sound)
    verify(path)


def test_every_byte_counts(tmp_path, monkeypatch):
    """Not one byte before the committed length may change without being noticed."""
    monkeypatch.setattr(time, "sleep", lambda _: None)  # a bad slot is looked at again, for a writer may be at it
    path = tmp_path / "mem.pt"
    memory = Simulator(0, (1, 1), 5)
    store = StateStore.create(path, memory.base())
    memory.write(1, "s")
    memory.commit_to(store)
    store.writer.publish()
    store.close()
    sound = path.read_bytes()
    assert len(sound) == 2 * SLOT_SIZE + sum(frame.end - frame.at for frame in store.file.frames)
    with path.open("r+b", buffering=0) as file:
        for at in [*range(0, 50), SLOT_SIZE - 1, *range(SLOT_SIZE, SLOT_SIZE + 50), *range(2 * SLOT_SIZE, len(sound))]:
            os.pwrite(file.fileno(), bytes([sound[at] ^ 1]), at)
            with pytest.raises(StateError):
                verify(path)
            os.pwrite(file.fileno(), sound[at : at + 1], at)
    verify(path)


def test_a_damaged_value_harms_only_who_reads_it(state):
    path, _ = state
    store = StateStore.open(path)
    frame = store.file.frames[-1]
    raw = bytearray(path.read_bytes())
    raw[frame.values_at] ^= 1  # layer 0, the first token of the last commit
    path.write_bytes(raw)
    store = StateStore.open(path)
    created = store.log.short()[0]
    assert len(store.take(0, created[:-4])) == len(created) - 4
    with pytest.raises(StateError, match="the value of memory token 16 in layer 0 differs"):
        store.take(0, created)
    store.close()


def test_a_truncated_file_is_refused_at_any_length(state):
    path, _ = state
    sound = path.read_bytes()
    for length in [0, 1, 7, 100, SLOT_SIZE, 2 * SLOT_SIZE - 1, 2 * SLOT_SIZE, *range(2 * SLOT_SIZE, len(sound), 97)]:
        path.write_bytes(sound[:length])
        error = refused(path)
        assert ("truncated" if length >= 100 else "not a memory state" if length < 8 else "truncated") in error.message
    path.write_bytes(sound)
    verify(path)


def test_a_file_cut_while_it_is_open_is_noticed(state):
    path, _ = state
    store = StateStore.open(path)
    os.truncate(path, 3 * SLOT_SIZE)
    with pytest.raises(StateError, match="truncated"):
        store.take(0, store.log.short()[0])
    store.close()


def test_a_sound_frame_of_another_state_is_noticed(state):
    """Every checksum holds, but this commit never followed that one."""
    path, _ = state
    other = path.with_name("other.pt")
    five_commits(other, seed=4)
    store, stranger = StateStore.open(path), StateStore.open(other)
    frame, theirs = store.file.frames[2], stranger.file.frames[2]
    store.close()
    stranger.close()
    assert (frame.at, frame.end) == (theirs.at, theirs.end)
    raw = bytearray(path.read_bytes())
    raw[frame.at : frame.end] = other.read_bytes()[frame.at : frame.end]
    path.write_bytes(raw)
    assert "the chain of frame headers" in refused(path).message


def test_bytes_behind_the_last_commit_are_ignored_and_cut_by_the_next_writer(state):
    path, memory = state
    sound = path.read_bytes()
    path.write_bytes(sound + os.urandom(5000))
    assert use(path) == memory.content()
    verify(path)
    store = StateStore.open(path, writable=True)
    memory.write(3)
    memory.commit_to(store)
    store.close()
    assert use(path) == memory.content() and path.stat().st_size == store.file.length


class Evil:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5, "torch", "torch-legacy"])
def test_a_pickle_is_refused_and_not_run(tmp_path, protocol):
    path, trap = tmp_path / "mem.pt", tmp_path / "it-ran"
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps(Evil(trap), protocol))
    else:
        import torch

        torch.save({"memory": Evil(trap)}, path, _use_new_zipfile_serialization=protocol == "torch")
        assert zipfile.is_zipfile(path) == (protocol == "torch")
    message = refused(path).message
    assert "not a memory state" in message and not trap.exists()
    assert "pickle" in message or protocol == 0
    refused(path, lambda p: StateStore.open(p, writable=True))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"It was the best of times" * 999, "does not begin like one"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a":1}', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89MPLUS\r\n" + b"\0" * 20000, "each superblock slot"),
        (b"\x89MPLUS\n" + b"\0" * 20000, "does not begin like one"),  # line ends were converted on the way
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, says):
    path = tmp_path / "mem.pt"
    path.write_bytes(content)
    assert says in refused(path).message


def test_missing_and_directory(tmp_path):
    assert "There is no memory state" in refused(tmp_path / "none.pt").message
    assert "is a directory" in refused(tmp_path).message
    for path in (tmp_path / "none.pt", tmp_path):
        refused(path, lambda p: StateStore.open(p, writable=True))
    assert os.listdir(tmp_path) == []


def test_a_later_format_is_refused(state):
    path, _ = state
    raw = bytearray(path.read_bytes())
    for at in (0, SLOT_SIZE):
        _, _, _, sequence, length, chain = struct.unpack_from("<8sIIQQI", raw, at)
        raw[at : at + SLOT_SIZE] = Slot(sequence, length, chain, FORMAT_VERSION + 6).pack()
    path.write_bytes(raw)
    error = refused(path)
    assert f"format {FORMAT_VERSION + 6}" in error.message and "pip install --upgrade" in str(error.hint)
    raw[SLOT_SIZE - 1] ^= 1  # a later format may also keep its checksum elsewhere
    raw[2 * SLOT_SIZE - 1] ^= 1
    path.write_bytes(raw)
    assert "format 7" in refused(path).message


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.index.update(writes=np.array([[21, 4]])),
        lambda c: c.index.update(writes=np.array([[20, -4]])),
        lambda c: c.index.update(dropped=np.full((LAYERS, 4), 3)),
        lambda c: c.index.update(dropped=np.full((LAYERS, 4), 10**15)),
        lambda c: c.index.update(evicted=np.full(LAYERS, 10**15)),
        lambda c: c.index.update(evicted=np.full(LAYERS, -1)),
        lambda c: c.index.update(evicted=np.zeros(1, np.int64)),
        lambda c: c.index.pop("evicted"),
        lambda c: c.index.update(evicted=np.zeros(LAYERS, np.float32)),
        lambda c: c.record.update(notes=[]),
        lambda c: c.record.update(notes=["x"]),
        lambda c: c.record.update(pending=float("inf")),
        lambda c: setattr(c, "kind", "delta"),
        lambda c: setattr(c, "keys", None),
        lambda c: setattr(c, "values", Block("F32", (LAYERS, 4, 4), [np.zeros((LAYERS * 4, 4), np.float32)])),
        lambda c: setattr(c, "values", Block("F16", (LAYERS, 4, 8), [np.zeros((LAYERS * 4, 8), np.float16)])),
    ],
)
def test_a_file_with_true_checksums_and_an_impossible_content_is_refused(state, change):
    """Somebody may make one on purpose."""
    path, memory = state
    memory.write(4, "x")
    content = memory.commit()
    change(content)
    writer = StateWriter.open(path)
    writer.append(content)
    writer.close()
    assert "contradicts itself: " in refused(path).message


@pytest.mark.parametrize(
    "table",
    [
        [],
        {"values": 1},
        {"values": {"dtype": "F32", "shape": [2, 4, 8], "data_offsets": [0, 1 << 60]}},
        {"values": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 256]}},
        {"values": {"dtype": "F32", "shape": [-1, 8], "data_offsets": [0, 256]}},
        {"values": {"dtype": "F999", "shape": [2, 4, 8], "data_offsets": [0, 256]}},
        {"writes": {"dtype": "I64", "shape": [1 << 50], "data_offsets": [0, 1 << 53]}},
        {"record": {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]}},
        "[" * 5000,
    ],
)
def test_a_forged_tensor_table_is_refused(state, table):
    """Whatever numbers a table claims, nothing is read or allocated by them."""
    path, _ = state
    file = StateFile.open(path)
    frame = file.frames[-1]
    file.close()
    raw = bytearray(path.read_bytes())
    size = frame.values_at - frame.at - 64
    text = (table if isinstance(table, str) else json.dumps(table)).encode()[: size - 8].ljust(size - 8)
    raw[frame.at + 72 : frame.values_at] = text
    head = struct.pack("<Q", size - 8) + text
    header = raw[frame.at : frame.at + 60]
    header[48:52] = struct.pack("<I", crc32(head))
    header += struct.pack("<I", crc32(header))
    raw[frame.at : frame.at + 64] = header
    chain = 0
    for each in file.frames:
        chain = crc32(raw[each.at : each.at + 60], chain)
    at = file.tip.sequence % 2 * SLOT_SIZE
    raw[at : at + SLOT_SIZE] = Slot(file.tip.sequence, file.length, chain).pack()
    path.write_bytes(raw)
    assert "the index of commit 5" in refused(path).message
