"""The bundled model is trained in a form of its own: it has to compute what the core computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from recipes.default_model.copying_start import copying_start
from recipes.default_model.evaluate import wilson
from recipes.default_model.export import TOLERANCE, core_config, core_tensors, largest_difference
from recipes.default_model.fast_model import FastModel
from recipes.default_model.parameters import Sizes
from recipes.default_model.streams import long_term, split_memory, take, write_streams

MEMORY = {"chunk": 12, "memory_tokens": 6, "short_term": 18, "budget": 10, "retriever": 8, "lora_rank": 2}
SMALL = Sizes(vocabulary=80, hidden=32, layers=3, heads=4, kv_heads=2, head_dim=16, mlp=48, **MEMORY)


@pytest.fixture
def pair() -> tuple[FastModel, MPlusForCausalLM]:
    """A model in which nothing is 0 or 1 by chance, in both forms."""
    torch.manual_seed(0)
    model = FastModel(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    core = MPlusForCausalLM(core_config(SMALL, end_of_line=1)).eval()
    core.load_state_dict(core_tensors(model), strict=True)
    return model, core


def test_both_forms_agree(pair):
    assert largest_difference(*pair) < TOLERANCE


def test_the_check_sees_a_difference(pair):
    model, core = pair
    with torch.no_grad():
        core.new_memory_positional_emb += 0.1
    assert largest_difference(model, core) > TOLERANCE


@torch.no_grad()
def test_a_read_with_retrieval_agrees(pair):
    """Seven writes through both forms, the core's own drops, then a question that searches long-term memory."""
    model, core = pair
    chunks = torch.randint(0, SMALL.vocabulary, (1, 7, SMALL.chunk))
    memory = core.new_memory(1, seed=3)
    for t in range(7):
        core.inject(chunks[:, t], memory)
    written = write_streams(model, chunks, torch.zeros(1, 0, dtype=torch.int64))
    held = memory.short_term.ordered(0)[1]
    every = torch.arange(7 * SMALL.memory_tokens)
    short = [take(rows, held[i][None]) for i, rows in enumerate(written.rows)]
    gone = [every[~torch.isin(every, held[i])][None] for i in range(SMALL.layers)]
    ids = torch.randint(0, SMALL.vocabulary, (1, 5))
    hidden, _ = model.read(ids, short, long_term(model, written, gone), torch.ones(1, 5, dtype=torch.bool))
    logits = core(ids, memory=memory).logits
    torch.testing.assert_close(model.logits(hidden), logits, atol=2e-3, rtol=2e-3)


def test_split_memory_keeps_the_newest_and_loses_none():
    short, long = split_memory(np.random.default_rng(0), FastModel(SMALL), batch=2, count=6)
    for kept, gone in zip(short, long, strict=True):
        assert kept.shape == (2, SMALL.short_term)
        for row in range(2):
            assert sorted(kept[row].tolist() + gone[row].tolist()) == list(range(6 * SMALL.memory_tokens))
            assert kept[row, -SMALL.memory_tokens :].tolist() == list(range(30, 36))
            assert gone[row].tolist() == sorted(gone[row].tolist())


def test_gradient_reaches_graded_writes_only():
    model = FastModel(SMALL)
    chunks = torch.randint(0, SMALL.vocabulary, (1, 4, SMALL.chunk))
    written = write_streams(model, chunks, torch.tensor([[2]]))
    other = torch.autograd.grad(written.rows[0][:, : 2 * SMALL.memory_tokens].sum(), model.embed, retain_graph=True)[0]
    graded = torch.autograd.grad(
        written.rows[0][:, 2 * SMALL.memory_tokens : 3 * SMALL.memory_tokens].sum(), model.embed
    )[0]
    assert other.abs().max() == 0
    assert graded.abs().max() > 0


def test_copying_start_looks_one_token_back():
    """The hand-written heads: with the first head of layer 0, token t attends to t - 1 more than to anything else."""
    torch.manual_seed(0)
    model = FastModel(Sizes())
    copying_start(model)
    layer, ids = model.layers[0], torch.randint(0, 1024, (1, 30))
    normed = model.norm(model.embed[ids], layer.input_norm)
    w = model.weights(None)[0]
    queries = model.heads(normed @ w["q_proj"].T, layer.q_norm, 0)[:, 0]
    keys = model.heads(normed @ w["k_proj"].T, layer.k_norm, 0)[:, 0]
    best = (queries @ keys.transpose(1, 2))[0].masked_fill(torch.ones(30, 30).triu(1).bool(), -torch.inf).argmax(-1)
    assert (best[2:] == torch.arange(2, 30) - 1).float().mean() > 0.9


def test_wilson_interval():
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-3) and high == pytest.approx(0.9433, abs=1e-3)
