"""Scores in tiles against scores at once."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core import retriever as module
from mplus_cli.core.retriever import Retriever, tiled_scores


@pytest.mark.parametrize("score", ["mean_sigmoid", "log_sum_exp"])
@pytest.mark.parametrize("limit", [1, 40, 100, 1 << 20])
def test_tiles_of_prompt_and_memory_give_the_scores_of_the_whole(score, limit, monkeypatch):
    torch.manual_seed(1)
    retriever, queries, keys = Retriever(16, 8, 2, score, False), torch.randn(13, 8), torch.randn(57, 8)
    monkeypatch.setattr(module, "PRODUCTS_AT_ONCE", limit)
    largest, scores = [], retriever.scores
    monkeypatch.setattr(retriever, "scores", lambda q, k: largest.append(len(q) * len(k)) or scores(q, k))
    found = tiled_scores(retriever, queries, keys.split(20))
    torch.testing.assert_close(found, scores(queries, keys), atol=1e-6, rtol=1e-5)
    assert max(largest) <= max(limit, 20)  # at least one prompt token at a time


def test_an_empty_store_has_no_scores():
    assert tiled_scores(Retriever(16, 8, 2, "mean_sigmoid", False), torch.randn(3, 8), []).shape == (0,)
