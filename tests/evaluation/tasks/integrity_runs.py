"""Small endurance runs: their items and stream, what is measured in one, and one that was never interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from mplus_cli.evaluation.items import Document, Item
from mplus_cli.evaluation.tasks import integrity_stream
from mplus_cli.evaluation.tasks.integrity import Integrity
from mplus_cli.evaluation.tasks.integrity_stream import Endless
from tests.evaluation.tasks.helpers import system, task_settings
from tests.fixtures import byte_tokenizer, tiny_model

TASK = Integrity()
MODEL = tiny_model().prepare_for_inference("read", "write")
CHUNK = 200  # bytes: enough for some facts to stand in one


@pytest.fixture
def short_books(monkeypatch):
    """So that a few dozen updates cross several books."""
    monkeypatch.setattr(integrity_stream, "BOOK_CHUNKS", 12)


def items(*options: str, **given) -> list[Item]:
    return list(
        TASK.items(task_settings(TASK, "updates=30", "start=5", "per_decade=2", "questions=4", *options, **given))
    )


def measured(folder: Path, made: list[Item], name: str = "mplus", tell=lambda part, words: None):
    asked = system(name, MODEL, f"chunk_size={CHUNK}")
    return {answer.sample_id: answer.extra for answer in TASK.measure_long(asked, made, folder, tell)}


def endless(seed: int = 1, texts: tuple[Document, ...] = ()) -> Endless:
    return Endless(seed, texts, byte_tokenizer(), CHUNK, 8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Everything asked, never interrupted: the items, the extras and where the memory is kept."""
    before, integrity_stream.BOOK_CHUNKS = integrity_stream.BOOK_CHUNKS, 12
    folder = tmp_path_factory.mktemp("whole")
    made = items("ask=both", "probe=5", limit=2)
    found = {"mplus": measured(folder / "mplus", made)}
    found["memoryllm"] = measured(folder / "memoryllm", made[:1], "memoryllm")
    integrity_stream.BOOK_CHUNKS = before
    return made, found, folder
