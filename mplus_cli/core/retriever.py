"""The co-trained retriever: projectors, scores and top-k over long-term memory (M+ section 3.2.2)."""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import nn

PRODUCTS_AT_ONCE = 1 << 24  # 64 MiB of float32, a few prompt tokens by a block of memory


class Projector(nn.Sequential):
    """d -> 2r -> r without biases, SiLU between; or a single d -> r."""

    def __init__(self, hidden_size: int, size: int, layers: int) -> None:
        if layers == 1:
            super().__init__(nn.Linear(hidden_size, size, bias=False))
        else:
            super().__init__(
                nn.Linear(hidden_size, 2 * size, bias=False), nn.SiLU(), nn.Linear(2 * size, size, bias=False)
            )


class Retriever(nn.Module):
    """One layer's retriever. Queries and keys are projections of hidden states after the layer's input norm.

    Inputs are detached: the retriever learns from its own loss, the language model never through it.
    """

    def __init__(self, hidden_size: int, size: int, layers: int, score: str, write_query: bool) -> None:
        super().__init__()
        self.score = score
        self.query_proj = Projector(hidden_size, size, layers)
        self.key_proj = Projector(hidden_size, size, layers)
        if write_query:
            self.write_query_proj = Projector(hidden_size, size, layers)

    def queries(self, normed: torch.Tensor) -> torch.Tensor:
        """[..., n, d] -> [..., n, r]."""
        return self.query_proj(normed.detach())

    def keys(self, normed: torch.Tensor) -> torch.Tensor:
        """[..., m, d] -> [..., m, r]."""
        return self.key_proj(normed.detach())

    def scores(self, queries: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Relevance of every memory token to a prompt, float32.

        Args:
            queries: [..., n, r]; keys: [..., m, r].
            valid: bool [..., n], query tokens that count. A prompt without any scores every token 0.

        Returns:
            [..., m]: mean over query tokens of sigmoid(q.k) (published), or the log-sum-exp over query tokens of
            q.k / sqrt(r) (contrastive).
        """
        # Kept in the published order of operations: with near-ties, another order picks another token.
        products = (queries @ keys.transpose(-1, -2)).float()
        if self.score == "mean_sigmoid":
            weights = products.sigmoid_()
            if valid is None:
                return weights.mean(-2)
            count = valid.sum(-1, keepdim=True).clamp(min=1)
            return (weights * valid.unsqueeze(-1)).sum(-2) / count
        logits = products.div_(math.sqrt(queries.shape[-1]))
        if valid is None:
            return logits.logsumexp(-2)
        scores = logits.masked_fill(~valid.unsqueeze(-1), -torch.inf).logsumexp(-2)
        return scores.masked_fill(~valid.any(-1, keepdim=True), 0.0)


def tiled_scores(retriever: Retriever, queries: torch.Tensor, key_blocks: Iterable[torch.Tensor]) -> torch.Tensor:
    """Scores of one row over keys held in blocks, [n, r] x blocks of [m_i, r] -> [sum m_i].

    The (query x memory) matrix exists for at most `PRODUCTS_AT_ONCE` entries at a time, however long the prompt; on a
    GPU with Triton not at all (see `scoring_kernel`).
    """
    blocks = list(key_blocks)
    if not blocks:
        return queries.new_empty(0, dtype=torch.float32)
    fused = _fused(queries.device, queries.dtype, retriever.score, queries.shape[1]) if queries.is_cuda else None
    if fused is not None and fused.can_score(queries, blocks):
        return fused.fused_scores(retriever.score, queries, blocks)
    return torch.cat([_block_scores(retriever, queries, block) for block in blocks])


@cache
def _fused(device: torch.device, dtype: torch.dtype, score: str, width: int) -> Any | None:
    """`scoring_kernel`, if there is Triton and the kernel gives on this device what torch gives."""
    if importlib.util.find_spec("triton") is None:
        return None
    draw = torch.Generator().manual_seed(0)
    queries, keys = ((torch.randn(size, width, generator=draw) / width**0.25).to(device, dtype) for size in (70, 130))
    try:
        module = importlib.import_module("mplus_cli.core.scoring_kernel")
        found = module.fused_scores(score, queries, [keys[:50], keys[50:]])
        expected = Retriever(width, width, 1, score, False).scores(queries, keys)
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    except Exception as error:  # whatever a compiler may raise on a machine that nobody has seen
        warnings.warn(f"retrieval scores are made without Triton, which fails here: {error}", stacklevel=2)
        return None
    return module


def _block_scores(retriever: Retriever, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    tiles = queries.split(max(1, PRODUCTS_AT_ONCE // max(1, len(keys))))
    total = retriever.scores(tiles[0], keys)
    if len(tiles) == 1:
        return total
    if retriever.score == "log_sum_exp":
        for tile in tiles[1:]:
            total = torch.logaddexp(total, retriever.scores(tile, keys))
        return total
    total *= len(tiles[0])
    for tile in tiles[1:]:
        total.add_(retriever.scores(tile, keys), alpha=len(tile))
    return total.div_(len(queries))
