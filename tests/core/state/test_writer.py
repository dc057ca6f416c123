"""One writer at a time, and nothing is lost to a failing disk, a read-only place or a file that is in the way."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mplus_cli.core.state import writer
from mplus_cli.core.state.frame import Block, Content
from mplus_cli.core.state.store import StateStore
from mplus_cli.core.state.writer import StateWriter
from mplus_cli.errors import StateError
from tests.core.state.simulator import Simulator
from tests.core.state.state_files import refused, use, verify

ROOT = Path(__file__).parents[3]


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
