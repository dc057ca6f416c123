"""A writer that dies at any moment, by SIGKILL or by power failure, leaves the state of one commit, never between."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mplus_cli.core.state import writer
from mplus_cli.core.state.rewrite import compact
from mplus_cli.core.state.store import StateStore
from mplus_cli.errors import StateError
from tests.core.state.simulator import Simulator, content_of

SECTOR = 512


def test_sigkill_at_random_moments(tmp_path):
    """Sixty kills while creating, committing and compacting, of a real process on a real disk."""
    command = [sys.executable, "-m", "tests.core.state.kill_writer", str(tmp_path / "mem.pt"), "60", "11"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["kills"] == 60 and seen["commits"] > 10  # however slow the machine, real work was cut short
    assert seen["with bytes behind the commit"] + seen["with a half made successor"] > 3, "no kill hit anything"


class Disk:
    """Records what a writer does to its file, and says what may be left of it when the power fails.

    What was synced is there. Of what was not, each sector may have reached the disk or not, in any order, and so may a
    new length of the file.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operations: list[tuple] = []
        pwrite, truncate = os.pwrite, os.ftruncate
        note = self.operations.append
        monkeypatch.setattr(os, "pwrite", lambda f, b, at: note(("write", at, bytes(b))) or pwrite(f, b, at))
        monkeypatch.setattr(os, "ftruncate", lambda f, size: note(("cut", size)) or truncate(f, size))
        monkeypatch.setattr(writer, "_sync", lambda f: note(("sync",)))

    def after_power_failure(self, before: bytes, count: int, chance: random.Random) -> bytes:
        """The file when the power failed after `count` operations."""
        done = self.operations[:count]
        synced = max((i for i, (kind, *_) in enumerate(done) if kind == "sync"), default=-1)
        image = bytearray(before)
        keep = chance.random()
        for i, (kind, *what) in enumerate(done):
            if kind == "cut" and (i < synced or chance.random() < keep):
                del image[what[0] :]
            elif kind == "write":
                at, data = what
                for start in range(0, len(data), SECTOR):
                    if i < synced or chance.random() < keep:
                        end = at + min(start + SECTOR, len(data))
                        image.extend(bytes(max(0, end - len(image))))
                        image[at + start : end] = data[start : start + SECTOR]
        return bytes(image)


def test_power_failure_at_every_moment_of_a_commit(tmp_path, monkeypatch):
    """Unsynced writes are lost or torn in any combination: the commit is there as a whole or not at all."""
    monkeypatch.setattr(time, "sleep", lambda _: None)  # a bad slot is looked at again, for a writer may be at it
    path, other = tmp_path / "mem.pt", tmp_path / "after.pt"
    memory = Simulator(8, (5, 3), 15)
    store = StateStore.create(path, memory.base())
    store.writer.publish()
    seen = set()
    for number in range(4):
        if number == 2:
            with path.open("ab") as file:  # what an earlier writer left behind
                file.write(os.urandom(3000))
        before, old = path.read_bytes(), memory.content()
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch)
            memory.write(4, "x")
            memory.commit_to(store, job=number)
        new = memory.content()
        chance = random.Random(number)
        for count in range(len(disk.operations) + 1):
            for _ in range(12):
                other.write_bytes(disk.after_power_failure(before, count, chance))
                state = StateStore.open(other, writable=True)
                held = content_of(state)
                assert held in (old, new) and (held == new or count < len(disk.operations))
                seen.add((held == new, state.file.torn))
                state.close()
                sound = StateStore.open(other)  # the writer mended a torn slot
                assert not sound.file.torn and content_of(sound) == held
                sound.close()
    assert seen == {(False, False), (True, False), (True, True)}
    store.close()


def test_power_failure_while_compacting_keeps_the_old_file(tmp_path, monkeypatch):
    """Nothing is renamed before the new file is whole and synced, directory included afterwards."""
    path = tmp_path / "mem.pt"
    memory = Simulator(8, (5, 3), 15)
    store = StateStore.create(path, memory.base())
    for _ in range(6):
        memory.write(4)
        memory.commit_to(store)
    store.writer.publish()
    order: list[str] = []
    replace, sync, directory = os.replace, writer._sync, writer._sync_directory
    monkeypatch.setattr(writer, "_sync", lambda f: order.append("sync") or sync(f))
    monkeypatch.setattr(writer, "_sync_directory", lambda p: order.append("sync directory") or directory(p))

    def renamed(source, target) -> None:
        order.append("rename")
        whole = StateStore.open(source)
        assert content_of(whole) == memory.content()
        whole.close()
        replace(source, target)

    monkeypatch.setattr(os, "replace", renamed)
    compact(store)
    assert order == ["sync", "sync", "rename", "sync directory"]
    store.close()


def test_a_torn_slot_without_its_commit_is_damage(tmp_path):
    """Only a slot that mixes its last two contents, with the frame it announces there, passes for a power failure."""
    path = tmp_path / "mem.pt"
    memory = Simulator(8)
    store = StateStore.create(path, memory.base())
    for _ in range(3):
        memory.write(4)
        memory.commit_to(store)
    store.writer.publish()
    store.close()
    sound = path.read_bytes()
    newest = store.file.tip.sequence % 2 * 4096
    for at, length in ((newest + 200, len(sound)), (newest + 24, len(sound) - 1), (4096 - newest + 24, len(sound))):
        raw = bytearray(sound)
        raw[at] ^= 0x55
        path.write_bytes(raw[:length])
        with pytest.raises(StateError, match="superblock slot|truncated"):
            StateStore.open(path)
