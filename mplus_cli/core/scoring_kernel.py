"""Retrieval scores in one Triton kernel: the (prompt x memory) products never leave the chip they are made on.

In torch every product is written and read several times on its way to a mean. Here a program keeps a tile of keys, goes
through the prompt, and writes one number per key. The keys lie in blocks; one launch takes all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

KEYS, QUERIES = 64, 64  # of a tile
LEAST, MOST_BYTES = 16, 512  # of a key: its numbers at least, its bytes at most
DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def _kernel(
    queries, blocks, counts, begins, out, n, scale, width: tl.constexpr, padded: tl.constexpr, sigmoid: tl.constexpr,
    dtype: tl.constexpr, tile_keys: tl.constexpr, tile_queries: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    count = tl.load(counts + block)
    rows = tl.program_id(1) * tile_keys + tl.arange(0, tile_keys)
    columns = tl.arange(0, padded)
    there, wide = rows < count, columns < width
    base = tl.load(blocks + block).to(tl.pointer_type(dtype))
    keys = tl.load(base + rows[:, None] * width + columns[None, :], mask=there[:, None] & wide[None, :], other=0.0)
    most = tl.full([tile_keys], float("-inf"), tl.float32)
    total = tl.zeros([tile_keys], tl.float32)
    for begin in range(0, n, tile_queries):
        tokens = begin + tl.arange(0, tile_queries)
        some = tokens < n
        asked = tl.load(
            queries + tokens[None, :] * width + columns[:, None], mask=some[None, :] & wide[:, None], other=0.0
        )
        # Rounded as torch's product would be: with near-ties, other numbers pick other tokens.
        products = tl.dot(keys, asked, input_precision="ieee").to(dtype).to(tl.float32)
        if sigmoid:
            total += tl.sum(tl.where(some[None, :], tl.sigmoid(products), 0.0), axis=1)
        else:
            products = tl.where(some[None, :], products * scale, float("-inf"))
            higher = tl.maximum(most, tl.max(products, axis=1))
            total = total * tl.exp(most - higher) + tl.sum(tl.exp(products - higher[:, None]), axis=1)
            most = higher
    result = total / n if sigmoid else most + tl.log(total)
    tl.store(out + tl.load(begins + block) + rows, result, mask=there)


def can_score(queries: torch.Tensor, blocks: Sequence[torch.Tensor]) -> bool:
    """Whether the kernel takes queries [n, r] and blocks of keys [m_i, r]."""
    width = queries.shape[1]
    return (
        len(queries) > 0
        and LEAST <= width <= MOST_BYTES // queries.itemsize
        and queries.dtype in DTYPES
        and all(block.is_contiguous() and block.dtype == queries.dtype for block in blocks)
    )


def fused_scores(score: str, queries: torch.Tensor, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scores [sum m_i], float32, as `retriever.tiled_scores` makes them.

    Args:
        score: "mean_sigmoid" or "log_sum_exp"; queries: [n, r]; blocks: keys [m_i, r], all on the same device.
    """
    queries, (n, width) = queries.contiguous(), queries.shape
    counts = [len(block) for block in blocks]
    begins = [sum(counts[:at]) for at in range(len(counts))]
    table = torch.tensor([[block.data_ptr() for block in blocks], counts, begins], dtype=torch.int64)
    table = table.to(queries.device, non_blocking=True)
    out = torch.empty(sum(counts), dtype=torch.float32, device=queries.device)
    grid: Any = (len(blocks), triton.cdiv(max(counts), KEYS))
    with torch.cuda.device_of(queries):  # Triton starts a kernel on the current device, whatever it is given
        _kernel[grid](
            queries,
            *table.unbind(),
            out,
            n,
            1 / math.sqrt(width),
            width=width,
            padded=triton.next_power_of_2(width),
            sigmoid=score == "mean_sigmoid",
            dtype=DTYPES[queries.dtype],
            tile_keys=KEYS,
            tile_queries=QUERIES,
        )
    return out
