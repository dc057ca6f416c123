"""Files that must be refused, each with a message that says which and what to do; and the lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from mplus_cli.core.state import writer
from mplus_cli.core.state.file import StateFile
from mplus_cli.core.state.frame import Block, Content
from mplus_cli.core.state.store import StateStore
from mplus_cli.core.state.superblock import FORMAT_VERSION, SLOT_SIZE, Slot
from mplus_cli.core.state.writer import StateWriter
from mplus_cli.errors import StateError
from tests.core.state.simulator import LAYERS, Simulator, content_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def state(tmp_path) -> tuple[Path, Simulator]:
    """A state of five commits, with tokens of the first frame and of every commit still in memory."""
    path = tmp_path / "mem.pt"
    memory = Simulator(3, (6, 5), 1000)
    store = StateStore.create(path, memory.base())
    for number in range(5):
        memory.write(4, f"source-{number}")
        memory.commit_to(store, job={"n": number + 1})
    store.writer.publish()
    store.close()
    return path, memory


def use(path: Path) -> tuple:
    """Open and read all that a memory consists of."""
    store = StateStore.open(path)
    try:
        return content_of(store)
    finally:
        store.close()


def verify(path: Path) -> None:
    store = StateStore.open(path)
    try:
        store.verify()
    finally:
        store.close()


def refused(path: Path, action=use) -> StateError:
    with pytest.raises(StateError) as error:
        action(path)
    assert str(path) in error.value.message and error.value.hint and error.value.exit_code == 2
    return error.value


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
    path, memory = state
    stranger = Simulator(4, (6, 5), 1000)
    other = StateStore.create(path.with_name("other.pt"), stranger.base())
    for number in range(5):
        stranger.write(4, f"source-{number}")
        stranger.commit_to(other, job={"n": number + 1})
    other.writer.publish()
    other.close()
    store = StateStore.open(path)
    frame, theirs = store.file.frames[2], other.file.frames[2]
    store.close()
    assert (frame.at, frame.end) == (theirs.at, theirs.end)
    raw = bytearray(path.read_bytes())
    raw[frame.at : frame.end] = other.file.path.read_bytes()[frame.at : frame.end]
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


# -- the lock ----------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_has_it_and_readers_are_not_hindered(state):
    path, memory = state
    code = (
        "import sys; from mplus_cli.core.state.store import StateStore\n"
        "store = StateStore.open(sys.argv[1], writable=True); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout and other.stdout.readline() == "open\n"
        error = refused(path, lambda p: StateStore.open(p, writable=True))
        assert f"process {other.pid} on {os.uname().nodename}" in error.message
        refused(path, lambda p: StateStore.create(p, memory.base(), replace=True))
        assert use(path) == memory.content()
        other.kill()
        other.wait()
        assert Path(f"{path}.lock").exists()  # a killed writer leaves the file, not the lock
        StateStore.open(path, writable=True).close()
        assert os.listdir(path.parent) == ["mem.pt"]
    finally:
        other.kill()
        other.communicate()


def test_a_lock_on_a_file_that_its_former_holder_removed_is_not_taken(state, monkeypatch):
    """Between our opening the lock file and our locking it, its holder may finish and remove it."""
    path, _ = state
    flock, removed = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(Path(f"{path}.lock").unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    store = StateStore.open(path, writable=True)
    monkeypatch.undo()
    with pytest.raises(StateError, match="already open"):
        StateStore.open(path, writable=True)
    store.close()


def test_one_writer_within_a_process_and_through_links(state):
    path, _ = state
    link = path.parent / "link.pt"
    link.symlink_to(path)
    store = StateStore.open(path, writable=True)
    for name in (path, link):
        with pytest.raises(StateError, match="already open for writing in this process"):
            StateStore.open(name, writable=True)
    store.close()
    StateStore.open(link, writable=True).close()


def test_a_file_that_was_replaced_under_its_writer_is_not_written(state):
    path, memory = state
    store = StateStore.open(path, writable=True)
    copy = path.with_name("copy.pt")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    before = path.read_bytes()
    memory.write(1)
    with pytest.raises(StateError, match="removed or replaced"):
        memory.commit_to(store)
    path.unlink()
    with pytest.raises(StateError, match="removed or replaced"):
        store.append(memory.commit())
    store.close()
    assert use_bytes(path, before)


def use_bytes(path: Path, raw: bytes) -> bool:
    path.write_bytes(raw)
    verify(path)
    return True


@pytest.mark.parametrize("good_writes", range(9))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_loses_nothing(state, monkeypatch, good_writes, code):
    """At any write of a commit, or (8) when it is synced. Then the same writer goes on, or says what to do instead."""
    path, memory = state
    before, pwrite, left = memory.content(), os.pwrite, good_writes
    store = StateStore.open(path, writable=True)

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    def failing(descriptor: int, data, at: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            pwrite(descriptor, data[: len(data) // 2], at)
            fail()
        return pwrite(descriptor, data, at)

    memory.write(4, "more")
    content = memory.commit()
    if good_writes == 8:
        monkeypatch.setattr(writer, "_sync", fail)
    else:
        monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(StateError, match="No room" if code == errno.ENOSPC else "cannot be written") as error:
        store.append(content)
    monkeypatch.undo()
    assert str(path) in error.value.message
    if good_writes != 7:
        assert use(path) == before
        store.append(content)
    else:  # half of the slot was written: open again, and the commit that it announced counts
        with pytest.raises(StateError, match="half way"):
            store.append(content)
    store.close()
    assert use(path) == memory.content()
    StateStore.open(path, writable=True).close()
    verify(path)


def test_short_writes_are_gone_on_with(state, monkeypatch):
    path, memory = state
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:61], at))
    store = StateStore.open(path, writable=True)
    memory.write(4)
    memory.commit_to(store)
    store.close()
    assert use(path) == memory.content()


def test_a_read_only_place(state, monkeypatch):
    path, memory = state
    real = os.open

    def read_only(name, flags: int, *rest, **more) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(name))
        return real(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    assert use(path) == memory.content()  # reading needs no lock and no write
    for action in (
        lambda p: StateStore.open(p, writable=True),
        lambda p: StateStore.create(p, memory.base(), replace=True),
    ):
        error = refused(path, action)
        assert "Read-only file system" in error.message and "Copy the state" in str(error.hint)


def test_create_refuses_what_is_there_and_leaves_it_until_the_first_commit(state):
    path, memory = state
    before = path.read_bytes()
    with pytest.raises(StateError, match="exists already") as error:
        StateStore.create(path, memory.base())
    assert "--fresh" in str(error.value.hint) and os.listdir(path.parent) == ["mem.pt"]
    store = StateStore.create(path, Simulator(9, (2, 0)).base(), replace=True)
    assert path.read_bytes() == before
    store.close()
    assert path.read_bytes() == before and os.listdir(path.parent) == ["mem.pt"]
    with pytest.raises(StateError, match="no directory") as error:
        StateStore.create(path.parent / "none" / "mem.pt", memory.base())
    assert "mkdir -p" in str(error.value.hint)


def test_a_private_file_stays_private(state):
    path, _ = state
    path.chmod(0o600)
    store = StateStore.create(path, Simulator(9, (2, 0)).base(), replace=True)
    store.writer.publish()
    store.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_content_of_wrong_size_is_never_committed(state):
    path, _ = state
    before = path.read_bytes()
    writer = StateWriter.open(path)
    with pytest.raises(ValueError, match="bytes short"):
        writer.append(Content("commit", Block("F32", (2, 4, 8), [np.zeros((7, 8), np.float32)])))
    writer.close()
    assert path.read_bytes()[: len(before)] == before
    verify(path)
