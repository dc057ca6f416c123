"""Explaining: shares add up, the best passage comes first, provenance is right, nothing unsure is shown."""

from __future__ import annotations

import hashlib

import pytest
import torch

from mplus_cli.core.long_term_memory import Retrieved
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.data.sources import Source
from mplus_cli.inference.explain import explain
from mplus_cli.inference.injection import Injection
from tests.fixtures import book

TEXT = book(8)


def retrieved(created: list[int], scores: list[float]) -> list[Retrieved]:
    """One row of one layer."""
    return [Retrieved(torch.tensor(created), torch.tensor(scores), torch.tensor(created))]


@pytest.fixture
def state(model, tokenizer, tmp_path):
    """A state with TEXT in it, beside the file it came from."""
    (tmp_path / "book.txt").write_text(TEXT)
    memory = model.new_memory()
    state = MemoryState.create(tmp_path / "memory.pt", model, memory)
    source = Source("book.txt", hashlib.sha256(TEXT.encode()).hexdigest(), TEXT)
    Injection(model, tokenizer, memory, state, [source]).run()
    yield state, memory
    state.close()


def test_ranking_shares_and_places(state):
    state, memory = state
    retrieval = [retrieved([0, 8, 9], [1.0, 3.0, 3.0]), retrieved([8, 16, -5], [2.0, 1.0, 0.0])]
    passages = explain(retrieval, memory, state)
    assert [(p.start, p.end) for p in passages] == [(64, 128), (128, 192), (0, 64)]
    first = torch.softmax(torch.tensor([1.0, 3.0, 3.0]), 0)
    second = torch.softmax(torch.tensor([2.0, 1.0, 0.0]), 0)
    assert passages[0].share == pytest.approx(float(first[1] + first[2] + second[0]) / 2)
    assert sum(p.share for p in passages) == pytest.approx(1 - float(second[2]) / 2)  # -5 is the checkpoint's own
    assert (passages[0].tokens, passages[0].layers) == (3, 2)
    assert passages[0].age == memory.created_total[0] - 1 - 9
    assert passages[0].text == TEXT[64:128]


def test_published_scores_are_masses(state, monkeypatch):
    state, memory = state
    monkeypatch.setattr(memory, "config", memory.config.__class__(**{"retriever_score": "mean_sigmoid"}))
    passages = explain([retrieved([0, 8], [0.2, 0.6])], memory, state)
    assert [p.share for p in passages] == pytest.approx([0.75, 0.25])


def test_at_most_as_many_as_asked_for(state):
    state, memory = state
    assert len(explain([retrieved([0, 8, 16, 24], [1.0] * 4)], memory, state, most=2)) == 2


def test_nothing_retrieved(state):
    state, memory = state
    assert explain([], memory, state) == []
    assert explain([retrieved([], [])], memory, state) == []


def test_writes_of_this_session_are_known_before_they_are_saved(state, model, tokenizer):
    state, memory = state
    total = memory.created_total[0]
    more = book(3)[::-1]
    source = Source("more.txt", hashlib.sha256(more.encode()).hexdigest(), more)
    Injection(model, tokenizer, memory, None, [source]).run()
    passage = explain([retrieved([total + 9], [1.0])], memory, state)[0]
    assert (passage.source, passage.start, passage.end, passage.text) == ("more.txt", 64, 128, None)


def test_a_changed_source_is_not_quoted(state, tmp_path):
    state, memory = state
    (tmp_path / "book.txt").write_text(TEXT + "!")
    assert explain([retrieved([0], [1.0])], memory, state)[0].text is None
