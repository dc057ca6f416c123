"""Other ways to read long-term memory: each against the plain way of computing the same, and none leaves a trace."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mplus_cli.core.attention import padded_mask
from mplus_cli.core.long_term_memory import Retrieved
from mplus_cli.core.prefix import MemoryPrefix
from mplus_cli.core.retrieval_policy import (
    ForeignPrefix,
    NoisePrefix,
    PerHeadPrefix,
    RandomPrefix,
    ZeroPrefix,
    per_head_attention,
    per_head_search,
)
from tests.core.helpers import filled_memory, random_ids, tiny_model

WRITES = 12  # 12 * 8 tokens: 32 in short-term memory, 64 in a store of 80, of which 16 are read


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def read(model, memory, reader=None, rows=None, prompt=None) -> torch.Tensor:
    view = memory.rows(rows or [*range(memory.batch_size)])
    view.reader = reader
    prompt = random_ids(1, 5, seed=9) if prompt is None else prompt
    with torch.no_grad():
        logits = model(prompt.expand(view.batch_size, -1), memory=view).logits
    read.retrieval = view.last_retrieval
    return logits


@pytest.mark.parametrize("reader", [RandomPrefix, ZeroPrefix, NoisePrefix])
def test_a_policy_is_the_same_alone_and_in_a_batch_and_every_time(model, reader):
    memory = filled_memory(model, WRITES, batch=3)
    together = read(model, memory, reader)
    for row in range(3):
        torch.testing.assert_close(read(model, memory, reader, [row])[0], together[row], atol=1e-5, rtol=0)
    assert torch.equal(read(model, memory, reader), together)
    assert (together - read(model, memory)).abs().max() > 1e-3


def test_a_policy_leaves_the_memory_and_its_ordinary_reads_alone(model):
    memory = filled_memory(model, WRITES)
    before = read(model, memory)
    for reader in (RandomPrefix, ZeroPrefix, NoisePrefix):
        read(model, memory, reader)
    with per_head_search(model):
        read(model, memory, PerHeadPrefix)
    assert torch.equal(read(model, memory), before)
    assert memory.reader is None
    assert model.model.config._attn_implementation == "mplus_sdpa"
    assert not any(hasattr(layer.self_attn, "searched") for layer in model.model.layers)


def test_random_retrieval_is_even_over_the_store_and_differs_by_layer_seed_and_age(model):
    counts = torch.zeros(96)
    memory = filled_memory(model, WRITES)
    for seed in range(60):
        memory.seeds = [seed]
        read(model, memory, RandomPrefix)
        drawn = [found[0].created for found in read.retrieval]
        assert all(len(one) == 16 and bool((one.diff() > 0).all()) for one in drawn)
        assert not torch.equal(drawn[0], drawn[1])
        held = torch.cat([*memory.long_term[0].layers[0].created.views()])
        counts[drawn[0]] += 1
        assert set(drawn[0].tolist()) <= set(held.tolist())
    held = torch.cat([*memory.long_term[0].layers[0].created.views()])
    old, young = counts[held[:32]].mean(), counts[held[32:]].mean()
    assert 60 * 16 / 64 * 0.8 < min(old, young) <= max(old, young) < 60 * 16 / 64 * 1.2


def test_zeros_read_as_keys_and_values_of_nothing(model):
    """Like a memory in which every long-term token is zero."""
    memory = filled_memory(model, WRITES)
    replaced = read(model, memory, ZeroPrefix)
    chosen = read.retrieval
    for layer, found in zip(memory.long_term[0].layers, chosen, strict=True):
        for block in layer.values._blocks.values():
            block.zero_()
        assert len(found[0].created) == 16
    torch.testing.assert_close(read(model, memory), replaced, atol=1e-5, rtol=0)


def test_noise_has_the_norms_of_what_it_replaces(model):
    memory = filled_memory(model, WRITES, batch=2)
    prefix = NoisePrefix(model, memory)
    plain = ZeroPrefix.__mro__[1](model, memory)
    hidden = torch.randn(2, 4, 64)
    found = [one.result() for one in plain.retrieve(0, hidden, None)]
    prefix.cos = plain.cos = torch.zeros(1, 1, 16)
    noise, rows = prefix.retrieved_tokens(0, found), plain.retrieved_tokens(0, found)
    torch.testing.assert_close(noise.norm(dim=-1), rows.norm(dim=-1), atol=1e-4, rtol=1e-4)
    assert torch.nn.functional.cosine_similarity(noise, rows, dim=-1).abs().mean() < 0.25


def test_foreign_tokens_are_the_donors_best(model):
    memory, other = filled_memory(model, WRITES), filled_memory(model, WRITES, seed=5)
    donor = other.long_term[0]
    read(model, memory, partial(ForeignPrefix, donor))
    foreign = read.retrieval[0][0]
    own = other.rows([0])
    own.short_term = memory.short_term  # in the first layer the query is the prompt's embedding in both
    with torch.no_grad():
        model(random_ids(1, 5, seed=9), memory=own)
    assert torch.equal(foreign.created, own.last_retrieval[0][0].created)
    # The whole read equals one of a memory that has the donor's store for its own.
    both = memory.rows([0])
    both.long_term = [donor]
    with torch.no_grad():
        expected = model(random_ids(1, 5, seed=9), memory=both).logits
    torch.testing.assert_close(read(model, memory, partial(ForeignPrefix, donor)), expected, atol=1e-5, rtol=0)


def test_a_donor_with_fewer_tokens_gives_what_it_has(model):
    memory, donor = filled_memory(model, WRITES), filled_memory(model, 5, seed=5).long_term[0]
    assert len(donor) == 8
    read(model, memory, partial(ForeignPrefix, donor))
    assert [len(found[0].created) for found in read.retrieval] == [8, 8, 8]


def test_per_head_search_of_a_store_within_the_budget_is_an_ordinary_read(model):
    """Everything is chosen by either, and the positions are the same."""
    memory = filled_memory(model, 6)
    assert len(memory.long_term[0]) == 16 == model.config.retrieval_budget
    with per_head_search(model):
        found = read(model, memory, PerHeadPrefix)
    torch.testing.assert_close(found, read(model, memory), atol=2e-5, rtol=0)


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
def test_per_head_search_reads_more_than_one_choice_and_the_same_in_a_batch(model, rows):
    memory = filled_memory(model, WRITES, batch=3)
    with per_head_search(model):
        found = read(model, memory, PerHeadPrefix, rows)
        alone = torch.cat([read(model, memory, PerHeadPrefix, [row]) for row in rows])
    torch.testing.assert_close(found, alone, atol=2e-5, rtol=0)
    assert (found - read(model, memory, rows=rows)).abs().max() > 1e-4


def test_per_head_search_goes_on_through_generation(model):
    """With a cache token by token as in one pass over all of them: every token searches for itself."""
    memory, ids = filled_memory(model, WRITES), random_ids(1, 7, seed=4)
    with per_head_search(model), torch.no_grad():
        whole = read(model, memory, PerHeadPrefix, prompt=ids)
        view = memory.rows([0])
        view.reader = PerHeadPrefix
        out = model(ids[:, :4], memory=view)
        parts = [out.logits]
        for at in range(4, 7):
            out = model(ids[:, at : at + 1], past_key_values=out.past_key_values)
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_per_head_attention_equals_a_slow_reference(padded, monkeypatch):
    torch.manual_seed(1)
    batch, heads, groups, length, width = 2, 2, 2, 3, 8
    first, end, budget, total = 4, 24, 5, 30
    query = torch.randn(batch, heads * groups, length, width)
    key, value = torch.randn(2, batch, heads, total, width)
    valid = torch.ones(batch, total, dtype=torch.bool)
    if padded:
        valid[1, 20:24] = False
        valid[1, 25] = False
    module = torch.nn.Module()
    module.searched = (first, end, budget)  # type: ignore[assignment]
    mask = padded_mask(valid, length, torch.float32) if padded else None
    monkeypatch.setattr("mplus_cli.core.retrieval_policy.WEIGHTS_AT_ONCE", 1)  # one query at a time
    found, _ = per_head_attention(module, query, key, value, mask)

    for b in range(batch):
        for h in range(heads * groups):
            for q in range(length):
                scores = key[b, h // groups] @ query[b, h, q] / width**0.5
                seen = torch.arange(total) <= total - length + q
                scores[~(seen & valid[b])] = -torch.inf
                keep = scores[first:end].topk(budget).indices + first
                chosen = torch.ones(total, dtype=torch.bool)
                chosen[first:end] = False
                chosen[keep] = True
                scores[~chosen] = -torch.inf
                torch.testing.assert_close(found[b, q, h], scores.softmax(0) @ value[b, h // groups], atol=1e-5, rtol=0)


def test_views_share_what_is_stored_and_offloaded_memory_reads_the_same(model):
    memory = filled_memory(model, WRITES, batch=3)
    assert memory.rows([0, 1, 2]).short_term.values.data_ptr() == memory.short_term.values.data_ptr()
    picked = memory.rows([2, 0, 2])
    assert picked.seeds == [2, 0, 2] and picked.long_term[0] is memory.long_term[2]
    plain = read(model, memory)
    torch.testing.assert_close(read(model, memory, rows=[2, 0, 2]), plain[[2, 0, 2]], atol=1e-5, rtol=0)
    offloaded = model.new_memory(3, [0, 1, 2], offload=True)
    for step in range(WRITES):
        model.inject(random_ids(3, 16, seed=step), offloaded)
    torch.testing.assert_close(read(model, offloaded), plain, atol=1e-5, rtol=0)


def test_short_term_memory_of_zeros_is_that_and_only_for_the_view(model):
    memory = filled_memory(model, WRITES)
    view = memory.rows([0])
    view.short_term = view.short_term.zeroed()
    assert view.short_term.values.abs().sum() == 0 and memory.short_term.values.abs().sum() > 0
    with torch.no_grad():
        assert (model(random_ids(1, 5, seed=9), memory=view).logits - read(model, memory)).abs().max() > 1e-3


class Short(MemoryPrefix):
    """Half of what is asked for."""

    def count(self, store) -> int:
        return store.expected_count() // 2

    def retrieve(self, index, hidden, text_valid):
        found = [one.result() for one in super().retrieve(index, hidden, text_valid)]
        return [
            Retrieved(one.created[:count], one.scores[:count], one.positions[:count])
            for one, count in zip(found, self.counts, strict=True)
        ]


@torch.no_grad()
def test_another_reader_of_the_same_memory_takes_over_no_buffer_of_another_size(model):
    memory, fresh = filled_memory(model, WRITES), filled_memory(model, WRITES)
    prompt = random_ids(1, 5, seed=9)
    for reader in (None, Short, None):
        memory.reader = reader
        found = model(prompt, memory=memory).logits
        torch.testing.assert_close(found, read(model, fresh, reader), atol=1e-5, rtol=0)
