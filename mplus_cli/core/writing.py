"""The write pass: read a chunk after the newest memory tokens, make new ones (MemoryLLM section 3.1, A.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from mplus_cli.core.cache import MemoryCache
from mplus_cli.core.memory import Memory
from mplus_cli.core.prefix import TokenPrefix
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM


def write_pass(
    model: MPlusForCausalLM,
    input_ids: torch.Tensor,
    context: torch.Tensor | None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Memory tokens of one chunk per row, under the adapter in use. Differentiable; no logits, no cache kept.

    In every layer the rows are `[BOS_l | newest memory tokens | text]`. The last K of them get the new-memory embedding
    before the layer and are its new memory tokens after it. A text shorter than K rewrites the newest K - n memory
    tokens, whose outputs do not travel on to the next layer.

    Args:
        input_ids: [B, n], left-padded. With padding every row must hold at least K tokens.
        context: [B, L, p, d], the newest memory tokens (p <= K), or None.

    Returns:
        [B, L, min(K, p + n), d].
    """
    batch, length = input_ids.shape
    held = 0 if context is None else context.shape[2]
    made = min(model.config.memory_tokens_per_write, held + length)
    rewritten = max(0, made - length)
    kept = None if context is None or held == rewritten else context[:, :, : held - rewritten]
    made_by_layer: list[torch.Tensor] = []

    def enter(index: int, hidden: torch.Tensor) -> torch.Tensor:
        if context is not None and rewritten:
            hidden = torch.cat([context[:, index, held - rewritten :].to(hidden.dtype), hidden], dim=1)
        tail = hidden[:, -made:] + model.new_memory_positional_emb
        return torch.cat([hidden[:, :-made], tail], dim=1) if hidden.shape[1] > made else tail

    def leave(index: int, hidden: torch.Tensor) -> torch.Tensor:
        made_by_layer.append(hidden[:, -made:])
        return hidden[:, -length:]

    embedded = model.model.embed_tokens(input_ids)
    prefix = TokenPrefix(model, batch, kept)
    model.run_layers(embedded, prefix, MemoryCache(), attention_mask, rewritten, enter, leave)
    return torch.stack(made_by_layer, dim=1)


def write_groups(
    input_ids: torch.Tensor, memory: Memory, target: Sequence[int], attention_mask: torch.Tensor | None
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor | None, torch.Tensor | None]]:
    """Rows that can share one write pass: equally long context, and equally long text or at least K tokens of it each.

    Args:
        input_ids: [B, n], left-padded; attention_mask: [B, n] or None.
        target: the row of memory that each row of text goes to.

    Yields:
        Rows of text, their ids [b, m], context [b, L, p, d] or None, and mask [b, m] or None.
    """
    size, width = memory.config.memory_tokens_per_write, input_ids.shape[1]
    lengths = [width] * len(input_ids) if attention_mask is None else attention_mask.sum(1).tolist()
    if min(lengths) == 0:
        raise UsageError("A row of text is empty.", "Inject at least one token per row.")
    groups: dict[tuple[int, int], list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault((min(size, memory.short_term.fill[target[row]]), min(size, length)), []).append(row)
    for (held, _), rows in groups.items():
        longest = max(lengths[row] for row in rows)
        padded = attention_mask is not None and any(lengths[row] != longest for row in rows)
        mask = attention_mask[rows, width - longest :] if attention_mask is not None and padded else None
        context = torch.stack([memory.context(target[row]) for row in rows]) if held else None
        yield rows, input_ids[rows, width - longest :], context, mask
