"""Writes a memory state for ever, to be killed: `python -m tests.core.state.kill_writer PATH KILLS SEED`.

Forks a writer, kills it after a random moment, and checks the file, again and again. Imports no torch, so that forking
is cheap and safe. Prints JSON: kills, commits, and how often the file was not there yet, was ahead of what had been
acknowledged, or was left with something half written. A state that is not that of one commit ends it with an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from mplus_cli.core.state.rewrite import compact
from mplus_cli.core.state.store import StateStore
from tests.core.state.simulator import Simulator, content_of

INITIAL, CAPACITY = (5, 3), 15


def memory_after(commits: int, seed: int) -> Simulator:
    """The reference after so many commits of two writes each."""
    memory = Simulator(seed, INITIAL, CAPACITY)
    for _ in range(commits):
        memory.write(3, "a")
        memory.write(2, "b")
        memory.journal.clear()
    return memory


def write_for_ever(path: Path, seed: int, acknowledge: int) -> None:
    """Continue the state, or make it; say the number of each commit once it is durable."""
    if path.exists():
        store = StateStore.open(path, writable=True)
        number = store.log.job or 0
        memory = memory_after(number, seed)
    else:
        memory, number = Simulator(seed, INITIAL, CAPACITY), 0
        store = StateStore.create(path, memory.base())
    while True:
        number += 1
        memory.write(3, "a")
        memory.write(2, "b")
        memory.commit_to(store, job=number)
        store.writer.publish()
        os.write(acknowledge, number.to_bytes(4, "little"))
        if number % 3 == 0:
            compact(store)


def check(path: Path, seed: int, acknowledged: int, seen: Counter) -> int:
    """Whatever the moment: the file opens, every checksum holds, and it is the state of one commit, none lost."""
    if not path.exists():
        assert acknowledged == 0
        seen["no file yet"] += 1
        return 0
    store = StateStore.open(path)
    number = store.log.job
    assert number in (acknowledged, acknowledged + 1), (number, acknowledged)
    assert content_of(store) == memory_after(number, seed).content()
    store.verify()
    seen["ahead of what was acknowledged"] += number > acknowledged
    seen["with bytes behind the commit"] += path.stat().st_size > store.file.length
    seen["with a half made successor"] += Path(f"{path}.new").exists()
    store.close()
    return number


def main(path: Path, kills: int, seed: int) -> None:
    moments, seen, number = random.Random(seed), Counter(), 0
    for attempt in range(kills):
        if attempt % 15 == 0:
            path.unlink(missing_ok=True)
            number = 0
        source, acknowledge = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(KeyboardInterrupt):
                write_for_ever(path, seed, acknowledge)
            os._exit(1)
        os.close(acknowledge)
        time.sleep(moments.uniform(0.001, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        heard = os.read(source, 1 << 20)
        os.close(source)
        number = check(path, seed, int.from_bytes(heard[-4:], "little") or number, seen)
        seen["kills"] += 1
        seen["commits"] += len(heard) // 4
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
