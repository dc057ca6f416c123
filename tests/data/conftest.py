"""What tests of the builders share."""

from __future__ import annotations

import os

import pytest

from tests.commands.helpers import CommandLine
from tests.fixtures import byte_tokenizer


@pytest.fixture
def mplus(capsys) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """One token per byte: counts that a test can check by itself."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return folder / "tokenizer.json"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Flushing to the disk takes milliseconds a file, and nothing but a power cut can tell the difference."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
