"""A batch is a batch of memories: batched calls equal row-by-row calls."""

from __future__ import annotations

import pytest
import torch
from transformers import StoppingCriteria

from mplus_cli.core.backbones import FAMILIES
from mplus_cli.errors import UsageError
from tests.core.helpers import random_ids, tiny_model

WRITES = ((7, 16), (1, 11), (0, 16), (4, 9))  # (earlier writes, tokens of the last one) per row: fills 32, 8, 0, 32
PROMPTS = (6, 3, 9, 1)


def one_row_memory(model, row: int, writes: int):
    memory = model.new_memory(1, seed=row)
    for step in range(writes):
        model.inject(random_ids(1, 16, seed=100 * row + step), memory)
    return memory


def joined(model, singles):
    """One batched memory with the content of several single ones."""
    memory = model.new_memory(len(singles), seed=[single.seeds[0] for single in singles])
    for row, single in enumerate(singles):
        memory.short_term.load(row, *single.short_term.ordered(0))
        memory.created_total[row] = single.created_total[0]
        for layer, store in enumerate(single.long_term[0].layers if single.long_term else []):
            values, created = store.take(layer, store.all_positions())
            memory.long_term[row].layers[layer].append(
                values, torch.cat([*store.keys.views(), torch.empty(0, 16)]), created
            )
    return memory


def left_padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.int64), row]) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    return ids, mask


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("capacity", [80, 0], ids=["mplus", "memoryllm"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_batched_equals_row_by_row(family, capacity, attn):
    model = tiny_model(family, attn=attn, long_term_capacity=capacity)
    singles = [one_row_memory(model, row, writes) for row, (writes, _) in enumerate(WRITES)]
    batch = joined(model, singles)
    last = [random_ids(n, seed=900 + row) for row, (_, n) in enumerate(WRITES)]
    ids, mask = left_padded(last)
    model.inject(ids, batch, mask)
    for row, single in enumerate(singles):
        model.inject(last[row][None], single)
        torch.testing.assert_close(batch.short_term.ordered(row)[0], single.short_term.ordered(0)[0], atol=1e-5, rtol=0)
        assert torch.equal(batch.short_term.ordered(row)[1], single.short_term.ordered(0)[1])

    prompts = [random_ids(n, seed=500 + row) for row, n in enumerate(PROMPTS)]
    ids, mask = left_padded(prompts)
    with torch.no_grad():
        logits = model(ids, memory=batch, attention_mask=mask).logits
    new = model.generate(ids, memory=batch, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None)
    for row, single in enumerate(singles):
        with torch.no_grad():
            alone = model(prompts[row][None], memory=single).logits[0]
        torch.testing.assert_close(logits[row, -len(alone) :], alone, atol=2e-5, rtol=0)
        out = model.generate(prompts[row][None], memory=single, max_new_tokens=5, do_sample=False, eos_token_id=None)
        assert new[row, -5:].tolist() == out[0, -5:].tolist()
        if capacity and len(single.long_term[0]):
            for layer in range(3):
                assert torch.equal(batch.last_retrieval[layer][row].created, single.last_retrieval[layer][0].created)


def test_short_and_partial_writes_in_one_batch():
    """Rows shorter than K tokens, one of them onto an empty memory, beside long ones."""
    model = tiny_model()
    lengths, writes = (3, 3, 20, 12), (0, 5, 5, 5)
    singles = [one_row_memory(model, row, n) for row, n in enumerate(writes)]
    batch = joined(model, singles)
    chunks = [random_ids(n, seed=70 + row) for row, n in enumerate(lengths)]
    model.inject(*left_padded(chunks)[:1], batch, left_padded(chunks)[1])
    for row, single in enumerate(singles):
        model.inject(chunks[row][None], single)
        torch.testing.assert_close(batch.short_term.ordered(row)[0], single.short_term.ordered(0)[0], atol=1e-5, rtol=0)
    assert batch.created_total == [3, 48, 48, 48]


class _StopAt(StoppingCriteria):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.token


def test_rows_that_stop_early_do_not_disturb_the_others():
    model = tiny_model()
    memory = joined(model, [one_row_memory(model, row, 6) for row in range(2)])
    ids = random_ids(2, 4, seed=3)
    free = model.generate(ids, memory=memory, max_new_tokens=6, do_sample=False, eos_token_id=None)
    stop = _StopAt(int(free[0, 5]))
    out = model.generate(
        ids, memory=memory, max_new_tokens=6, do_sample=False, eos_token_id=None, stopping_criteria=[stop]
    )
    assert out[1].tolist() == free[1, : out.shape[1]].tolist()


def test_a_write_to_some_rows_leaves_the_others():
    """Rows of text can go to chosen rows of memory, in any order."""
    model = tiny_model()
    singles = [one_row_memory(model, row, 6) for row in range(3)]
    batch = joined(model, singles)
    before = [values.clone() for values in batch.short_term.ordered(1)]
    chunks = {2: random_ids(14, seed=5), 0: random_ids(16, seed=6)}
    ids, mask = left_padded(list(chunks.values()))
    model.inject(ids, batch, mask, notes=[{"row": 2}, {"row": 0}], rows=list(chunks))
    for row, chunk in chunks.items():
        model.inject(chunk[None], singles[row])
        torch.testing.assert_close(
            batch.short_term.ordered(row)[0], singles[row].short_term.ordered(0)[0], atol=1e-5, rtol=0
        )
        assert torch.equal(batch.short_term.ordered(row)[1], singles[row].short_term.ordered(0)[1])
    assert all(torch.equal(a, b) for a, b in zip(before, batch.short_term.ordered(1), strict=True))
    with pytest.raises(UsageError, match="2 rows of text for 1 rows"):
        model.inject(ids, batch, mask, rows=[1, 1])
