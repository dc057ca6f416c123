"""Tokens through a compiled graph over buffers of fixed size against the plain path, token for token."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core.adapters import READ, WRITE
from mplus_cli.core.attention import STRETCH, buffer_attention, padded_mask, prefix_attention
from mplus_cli.core.cache import BufferLayer
from mplus_cli.core.decoding import CompiledDecoder
from mplus_cli.errors import UsageError
from tests.core.helpers import SIZES, filled_memory, random_ids, tiny_model


@pytest.fixture(autouse=True)
def two_layers(monkeypatch):
    """The least that are different; every layer is traced again for every size."""
    monkeypatch.setitem(SIZES, "num_hidden_layers", 2)


@pytest.mark.parametrize(("batch", "groups"), [(1, 1), (2, 4)])
@pytest.mark.parametrize("total", [5, STRETCH, 3 * STRETCH + 7])
def test_attention_over_a_buffer_equals_attention_over_what_is_there(batch, groups, total):
    torch.manual_seed(0)
    key, value = torch.randn(2, batch, 2, total, 8)
    query = torch.randn(batch, 2 * groups, 1, 8)
    seen = torch.rand(batch, total) < 0.7
    seen[:, -1] = True
    found = buffer_attention(query, key, value, seen[:, None, None])
    expected, _ = prefix_attention(torch.nn.Module(), query, key, value, padded_mask(seen, 1, key.dtype))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    key[:, :, ~seen[0]] = 1e4 if batch == 1 else key[:, :, ~seen[0]]  # what is not there is not looked at
    if batch == 1:
        torch.testing.assert_close(buffer_attention(query, key, value, seen[:, None, None]), expected)


def answers(model, memory, batch, tokens=10):
    """Ids and logits of answers to prompts of several lengths, with padding, and with a write between."""
    found = []
    for turn, length in enumerate((4, 7, 252)):
        ids = random_ids(batch, length, seed=length)
        mask = torch.ones_like(ids)
        mask[0, : 3 * (turn == 1)] = 0
        kept = model.generate(
            ids,
            attention_mask=mask,
            memory=memory,
            max_new_tokens=tokens,
            output_logits=True,
            return_dict_in_generate=True,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found.append((kept.sequences, torch.stack(kept.logits)))
        if turn == 1:
            model.inject(random_ids(batch, 16, seed=77), memory)
    return found


def same(ours, theirs):
    for (ids, logits), (their_ids, their_logits) in zip(ours, theirs, strict=True):
        assert torch.equal(ids, their_ids)
        torch.testing.assert_close(logits, their_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "batch", "merged", "backend"), [("llama", 1, True, "aot_eager"), ("qwen3", 3, False, "eager")]
)
def test_compiled_tokens_are_the_plain_ones(family, batch, merged, backend, monkeypatch):
    model = tiny_model(family)
    if merged:
        model.prepare_for_inference(READ, WRITE)
    plain, compiled = filled_memory(model, 9, batch), filled_memory(model, 9, batch)
    expected = answers(model, plain, batch)
    model.compile_decoding(backend)
    steps, call = [], CompiledDecoder.__call__
    monkeypatch.setattr(CompiledDecoder, "__call__", lambda self, *given: steps.append(1) or call(self, *given))
    same(answers(model, compiled, batch), expected)
    assert len(steps) == 3 * 9  # every token but the first


def test_a_cache_is_continued_by_hand_and_outgrows_its_room():
    model = tiny_model().compile_decoding("eager")
    memory, ids = filled_memory(model, 5), random_ids(1, 300, seed=5)  # little enough to be retrieved whole
    with torch.no_grad():
        whole = model(ids, memory=memory).logits[:, 250:]
        cache = model(ids[:, :251], memory=filled_memory(model, 5)).past_key_values
        room = cache.layers[0].keys.shape[2]
        told = [model(ids[:, at : at + 1], past_key_values=cache).logits for at in range(251, 300)]
    assert cache.layers[0].keys.shape[2] > room and cache.get_seq_length() == 300
    torch.testing.assert_close(torch.cat(told, dim=1), whole[:, 1:], atol=1e-4, rtol=0)


def test_every_size_is_compiled_also_after_torchs_own_limit():
    model, graphs = tiny_model(), []
    model.compile_decoding(lambda graph, inputs: graphs.append(len(inputs)) or graph.forward)
    memory = model.new_memory()
    for _ in range(10):
        model.inject(random_ids(1, 1), memory)  # one more memory token to read
        model.generate(random_ids(1, 3), memory=memory, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert len(graphs) > torch._dynamo.config.recompile_limit


def test_room_that_nothing_was_written_to_holds_zeros():
    for _ in range(5):
        poison = torch.full((1, 2, 300 + 256, 8), torch.nan)
        del poison
        layer = BufferLayer()
        layer.reserve(torch.empty(1, 2, 1, 8), 300)
        assert not layer.values[:, :, 300:].any()


def test_what_it_does_not_take_runs_as_before():
    model = tiny_model().compile_decoding("eager")
    memory = filled_memory(model, 9)
    read = model(random_ids(1, 4), memory=memory)  # with gradients: no buffers
    more = model(random_ids(1, 1), past_key_values=read.past_key_values)
    assert more.logits.requires_grad
    with pytest.raises(UsageError, match="eager attention"):
        tiny_model(attn="eager").compile_decoding()
