"""Writing documents: spans by creation index and uneven rows."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core.memory import Memory
from mplus_cli.training.contexts import write_contexts
from tests.training.helpers import documents, tiny_memory_model, tiny_recipe


@pytest.fixture(scope="module")
def model():
    return tiny_memory_model(tiny_recipe(3))


def test_rows_with_different_numbers_of_contexts(model):
    """Against the core's own injection, one row and one chunk at a time."""
    chunks = [example.contexts for example in documents(3, [6, 1, 3])]
    chunks[1].append([70, 71])  # shorter than K
    memory = Memory(model.config, 3, [0, 1, 2])
    written = write_contexts(model, memory, chunks)
    for row, own in enumerate(chunks):
        alone = Memory(model.config, 1, [row])
        spans = []
        for ids in own:
            start = alone.created_total[0]
            model.inject(torch.tensor([ids]), alone)
            spans.append((start, alone.created_total[0]))
        assert written.spans[row] == spans
        assert written.document_span(row) == (0, alone.created_total[0])
        for found, expected in zip(memory.short_term.ordered(row), alone.short_term.ordered(0), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        for layer in range(2):
            stores = [one.long_term[at].layers[layer] for one, at in ((memory, row), (alone, 0))]
            for found, expected in zip(*(s.take(layer, s.all_positions()) for s in stores), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_spans_go_on_from_what_the_memory_held(model):
    memory = Memory(model.config, 1, [0])
    first = write_contexts(model, memory, [[[40] * 8, [41] * 9]])
    second = write_contexts(model, memory, [[[42] * 8]])
    assert first.spans == [[(0, 4), (4, 8)]] and second.spans == [[(8, 12)]]
