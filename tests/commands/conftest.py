"""Fixtures of the command tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.helpers import CommandLine
from tests.fixtures import book


@pytest.fixture
def mplus(capsys) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def book_file(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(book(20))
    return path


@pytest.fixture
def state(mplus, tmp_path: Path, book_file: Path, model_folder: Path) -> Path:
    """A memory file that holds `book_file`."""
    path = tmp_path / "memory.pt"
    code, _, err = mplus("inject", book_file, "--state", path, "--model", model_folder, "--quiet")
    assert (code, err) == (0, "")
    return path
