"""Attention over a memory prefix: one call that never copies keys or values per query head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

NAME = "mplus_sdpa"
STRETCH = 512  # keys that one processor of a GPU adds up
SMALL = 1 << 21  # attention weights, over all heads and rows, that two CPU cores keep in their caches


def prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention of Q new tokens over [memory prefix | earlier tokens | new tokens].

    Args:
        query: [B, H, Q, D]; key, value: [B, H_kv, T, D] with T >= Q.
        attention_mask: additive [B or 1, 1, Q, T], or None for "everything before and including oneself", the
            bottom-right aligned causal mask of the write and read passes; bool [B, 1, 1, T] in `buffer_attention`.

    Returns:
        [B, Q, H, D], and None for the weights, which SDPA does not form.
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        return buffer_attention(query, key, value, attention_mask, scaling), None
    if attention_mask is None and length > 1 and query.is_cuda:
        bias = causal_lower_right(length, key.shape[2])
        out = F.scaled_dot_product_attention(query, key, value, bias, dropout, scale=scaling, enable_gqa=groups > 1)
        return out.transpose(1, 2).contiguous(), None
    # Query heads that share a key/value head become further query rows of that head.
    folded = query.reshape(batch, heads // groups, groups * length, width)
    if query.is_cpu and fits_cache(batch * heads * length, key.shape[2]):
        scaled = folded * (width**-0.5 if scaling is None else scaling)
        out = _matmul_attention(scaled, key, value, attention_mask, groups)
        return out.reshape(batch, heads, length, width).transpose(1, 2).contiguous(), None
    if attention_mask is None and length > 1:
        attention_mask = causal_mask(length, key.shape[2], query.dtype, query.device)
    if attention_mask is not None and groups > 1:
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(folded, key, value, attention_mask, dropout, scale=scaling)
    return out.reshape(batch, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, prefix_attention)


def buffer_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, scaling: float | None = None
) -> torch.Tensor:
    """Attention of one token per row over a whole buffer, of which `seen` says what exists; sizes never change.

    The sum over the buffer is made in stretches of `STRETCH` keys that add up: heads and rows alone would keep a few of
    a GPU's processors busy, and the time is that of reading the buffer.

    Args:
        query: [B, H, 1, D]; key, value: [B, H_kv, T, D]; seen: bool [B, 1, 1, T].

    Returns:
        [B, 1, H, D].
    """
    batch, heads, length, width = query.shape
    total, groups = key.shape[2], heads // key.shape[1]
    folded = query.reshape(batch, heads // groups, groups * length, width)
    weights = (folded @ key.transpose(2, 3)).float() * (width**-0.5 if scaling is None else scaling)
    weights = weights.masked_fill(~seen, -torch.inf).softmax(-1).to(value.dtype)
    whole = total // STRETCH * STRETCH
    out = weights[..., whole:] @ value[:, :, whole:]
    if whole:
        parts = weights[..., :whole].unflatten(3, (-1, STRETCH)).transpose(2, 3)
        out = out + (parts @ value[:, :, :whole].unflatten(2, (-1, STRETCH))).float().sum(2).to(out.dtype)
    return out.reshape(batch, heads, length, width).transpose(1, 2).contiguous()


def fits_cache(rows: int, total: int) -> bool:
    """Whether a CPU should form the weights of `rows` queries (batch, heads, tokens) on `total` keys; no autograd."""
    return not torch.is_grad_enabled() and rows * total <= SMALL


def _matmul_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, groups: int
) -> torch.Tensor:
    """Attention as two matrix products: on a CPU faster than the fused kernel while the weights fit the cache.

    Args:
        query: [B, H_kv, groups * Q, D], scaled. mask: additive [B or 1, 1, Q, T]; None for causal, where only the last
            Q keys can be hidden from anyone.
    """
    length, total = query.shape[2] // groups, key.shape[2]
    weights = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    weights = weights.view(*query.shape[:2], groups, length, total)
    if mask is not None:
        weights += mask.unsqueeze(2)
    elif length > 1:
        weights[..., total - length :] += causal_mask(length, length, query.dtype, query.device)
    weights = torch.softmax(weights, -1, out=weights).view(-1, groups * length, total)
    return torch.bmm(weights, value.flatten(0, 1)).view(query.shape)


def causal_mask(length: int, total: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Additive bottom-right aligned causal mask, [1, 1, length, total]."""
    mask = torch.full((length, total), torch.finfo(dtype).min, dtype=dtype, device=device)
    return mask.triu_(total - length + 1)[None, None]


def padded_mask(valid: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive causal mask for rows with holes.

    Args:
        valid: bool [B, T], which of the T keys exist in each row; the last `length` keys are the queries themselves.

    Returns:
        [B, 1, length, T]. A padded query sees itself, so that no row of the softmax is empty.
    """
    total = valid.shape[1]
    mask = causal_mask(length, total, dtype, valid.device).repeat(valid.shape[0], 1, 1, 1)
    mask.masked_fill_(~valid[:, None, None, :], torch.finfo(dtype).min)
    own = torch.arange(length, device=valid.device)
    mask[:, :, own, own + total - length] = 0
    return mask
