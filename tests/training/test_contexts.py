"""Writing documents: spans by creation index, uneven rows, and the merged adapter of writes without gradient."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core.memory import Memory
from mplus_cli.training.contexts import left_padded, write_contexts
from mplus_cli.training.merged import merged_adapter
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


@pytest.mark.parametrize("adapter", ["write", "read"])
def test_a_merged_adapter_gives_the_same_numbers(model, adapter):
    ids = torch.tensor([[50, 51, 52, 53, 54, 55]])
    with torch.no_grad():
        expected = model.write(ids, None, adapter=adapter)
        other = model.write(ids, None, adapter="read" if adapter == "write" else "write")
        with merged_adapter(model, adapter):
            found = model.write(ids, None, adapter=adapter)
        after = model.write(ids, None, adapter=adapter)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, expected) and not torch.allclose(other, expected, rtol=1e-2)


def test_adapters_are_not_merged_where_that_would_change_them():
    rounded = tiny_memory_model(tiny_recipe(1)).bfloat16()
    dropping = tiny_memory_model(tiny_recipe(1))
    for layer in dropping.adapters.layers:
        layer.lora_dropout["write"] = torch.nn.Dropout(0.1)
    for model in (rounded, dropping):
        with merged_adapter(model, "write"):
            assert not any("forward" in vars(layer) for layer in model.adapters.layers)


def test_padding_is_on_the_left():
    ids, mask = left_padded([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left_padded([[1, 2], [3, 4]])[1] is None
