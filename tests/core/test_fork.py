"""A fork goes on alone: neither it nor the memory it was made of sees what the other is written."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core import long_term_memory
from mplus_cli.core.fork import fork
from mplus_cli.core.memory import Memory
from tests.fixtures import tiny_model


def chunk(seed: int) -> torch.Tensor:
    return torch.randint(3, 259, (1, 20), generator=torch.Generator().manual_seed(seed))


def written(model, count: int, first: int = 0, memory: Memory | None = None, **given) -> Memory:
    memory = memory or model.new_memory(seed=5, **given)
    for seed in range(first, first + count):
        model.inject(chunk(seed), memory)
    return memory


def content(memory: Memory):
    """Everything that a memory holds, in order."""
    stores = [(layer.take(n, layer.all_positions()), list(layer.keys.views()))
              for store in memory.long_term for n, layer in enumerate(store.layers)]  # fmt: skip
    long = [(values.clone(), created.clone(), [key.clone() for key in keys]) for (values, created), keys in stores]
    return memory.created_total, memory.short_term.ordered(0), long


def assert_same(one: Memory, other: Memory) -> None:
    torch.testing.assert_close(content(one), content(other), rtol=0, atol=0)


@pytest.fixture(params=[4, 16, 4096], ids="blocks of {} rows".format)
def small_blocks(request, monkeypatch):
    """Blocks that fill up and are freed often; a store of 80 tokens gives up its oldest with every write."""
    monkeypatch.setattr(long_term_memory, "BLOCK_ROWS", (request.param, request.param))


@pytest.mark.parametrize("before", [1, 9, 30])
def test_a_fork_and_its_memory_go_on_as_if_alone(small_blocks, before):
    model = tiny_model()
    memory = written(model, before)
    other = fork(memory)
    assert_same(other, memory)
    for step in range(25):  # by turns, so that each could spoil the other's blocks
        written(model, 1, 1_000 + step, other)
        written(model, 1, before + step, memory)
    assert_same(memory, written(model, before + 25))
    assert_same(other, written(model, 25, 1_000, written(model, before)))


def test_what_one_of_them_gives_up_the_other_still_has(small_blocks):
    """One stands still while the other is written far beyond the capacity of its store."""
    model = tiny_model()
    for forked in (True, False):
        memory = written(model, 30)
        pair = (fork(memory), memory)
        written(model, 25, 1_000, pair[forked])
        assert_same(pair[not forked], written(model, 30))


def test_a_fork_outlives_inference_mode(small_blocks):
    model = tiny_model()
    memory = written(model, 9)
    with torch.inference_mode():
        other = fork(memory)
    assert_same(written(model, 25, 9, other), written(model, 34))


def test_a_fork_reads_as_its_memory_does(small_blocks):
    model = tiny_model()
    memory = written(model, 20)
    with torch.inference_mode():
        expected = model(chunk(99), memory=memory.rows([0])).logits
        other = fork(memory)
        assert torch.equal(model(chunk(99), memory=other).logits, expected)
        written(model, 5, 50, other)
        assert not torch.equal(model(chunk(99), memory=other).logits, expected)
        assert torch.equal(model(chunk(99), memory=memory.rows([0])).logits, expected)


def test_a_fork_without_long_term_memory_and_of_several_rows():
    model = tiny_model()
    config = model.config.varied(long_term_capacity=0)
    memory = model.new_memory(2, [1, 2], config=config)
    model.inject(torch.cat([chunk(1), chunk(2)]), memory)
    other = fork(memory)
    model.inject(torch.cat([chunk(3), chunk(4)]), other)
    assert other.created_total == [16, 16] and memory.created_total == [8, 8]
    assert memory.short_term.fill == [8, 8] and other.long_term == []


def test_a_fork_keeps_no_journal():
    model = tiny_model()
    memory = model.new_memory()
    memory.keep_journal()
    other = fork(memory)
    written(model, 2, 0, other)
    assert other.journal is None and memory.journal == [[]]
