"""A state file of several commits, and what reading a file gives: all that it holds, or an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from mplus_cli.core.state.store import StateStore
from mplus_cli.errors import StateError
from tests.core.state.simulator import Simulator, content_of


def five_commits(path: Path, seed: int = 3) -> Simulator:
    """Make a state of five commits, with tokens of the first frame and of every commit still in memory."""
    memory = Simulator(seed, (6, 5), 1000)
    store = StateStore.create(path, memory.base())
    for number in range(5):
        memory.write(4, f"source-{number}")
        memory.commit_to(store, job={"n": number + 1})
    store.writer.publish()
    store.close()
    return memory


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
