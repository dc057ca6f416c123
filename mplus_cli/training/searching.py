"""Searching one long-term memory with several texts at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mplus_cli.core.long_term_memory import LongTermMemory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.training.contexts import Span


def search(
    model: MPlusForCausalLM,
    store: LongTermMemory,
    layer: int,
    queries: torch.Tensor,
    valid: torch.Tensor,
    wanted: Sequence[Span | None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The top K_theta memory tokens of one layer for every text, oldest first; as `LongTermMemory.retrieve` picks them.

    Args:
        queries: [q, n, r]; valid: bool [q, n], tokens that count.
        wanted: per text a span of creation indices that is found first, or None.

    Returns:
        Values [q, k, d] on the host, creation indices int64 [q, k].
    """
    keys = store.layers[layer].keys
    scores = torch.cat([model.retrievers[layer].scores(queries, block, valid) for block in keys.views()], dim=-1)
    if wanted is not None:
        created = store.layers[layer].all_created()
        spans = torch.tensor([span or (0, 0) for span in wanted])[:, :, None]
        scores = scores.masked_fill(((created >= spans[:, 0]) & (created < spans[:, 1])).to(scores.device), torch.inf)
    if store.config.fill_rule == "tile":
        positions = torch.stack([store.retrieve(layer, one).positions for one in scores])
    else:
        best = scores.topk(min(store.config.retrieval_budget, scores.shape[1]), sorted=False).indices.cpu()
        # Tokens arrive in the order of their dropping, not of their creation.
        order = store.layers[layer].all_created()[best].argsort(dim=-1, stable=True)
        positions = best.gather(1, order) + store.layers[layer].created.start
    values, created = store.layers[layer].take(layer, positions.flatten())
    return values.view(*positions.shape, values.shape[-1]), created.view(positions.shape)
