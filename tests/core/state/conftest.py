"""Fixtures of the state tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.helpers import tiny_model
from tests.core.state.simulator import Simulator
from tests.core.state.state_files import five_commits


@pytest.fixture
def state(tmp_path) -> tuple[Path, Simulator]:
    """A state of five commits, and the reference of what it holds."""
    path = tmp_path / "mem.pt"
    return path, five_commits(path)


@pytest.fixture(scope="module")
def model():
    """The tiny random model of the core's tests. Tests must not change it."""
    return tiny_model()
