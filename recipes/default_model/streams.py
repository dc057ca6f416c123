"""Streams of writes: a batch of memories written chunk by chunk, then split into short-term and long-term memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recipes.default_model.fast_model import FastModel, LongTerm


@dataclass
class Written:
    """All memory tokens of B streams of C writes.

    Attributes:
        rows: per layer `[B, C * K, d]`, oldest first; those of the chunks in `graded` carry gradient.
        graded: int64 `[B, G]`, chunks written with gradient.
    """

    rows: list[Tensor]
    graded: Tensor


def write_streams(model: FastModel, chunks: Tensor, graded: Tensor) -> Written:
    """Writes `chunks [B, C, n]`; those of `graded [B, G]` once more, side by side, with gradient.

    A graded write takes the memory before it as given, so that gradient reaches one write and not the chain before it.
    """
    batch, count, _ = chunks.shape
    k, layers = model.s.memory_tokens, model.s.layers
    if count == 1:
        return Written(model.write(chunks[:, 0], None), graded)
    with torch.no_grad():
        weights, context = model.weights("write"), None
        history = []
        for t in range(count):
            context = model.write(chunks[:, t], context, weights)
            history.append(context)
    rows = [torch.stack([h[i] for h in history], 1) for i in range(layers)]  # [B, C, K, d]
    if graded.shape[1]:
        which = torch.arange(batch)[:, None]
        before = [rows[i][which, graded - 1].flatten(0, 1) for i in range(layers)]
        new = model.write(chunks[which, graded].flatten(0, 1), before)
        rows = [r.index_put((which, graded), d.view(batch, -1, k, d.shape[-1])) for r, d in zip(rows, new, strict=True)]
    return Written([r.flatten(1, 2) for r in rows], graded)


def split_memory(
    rng: np.random.Generator, model: FastModel, batch: int, count: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Which tokens are in short-term and which in long-term memory after `count` writes, by the rule of random drop.

    Returns, per layer, indices `[B, S]` and `[B, M]` into a stream's tokens, oldest first.
    """
    k, size, layers = model.s.memory_tokens, model.s.short_term, model.s.layers
    sets = batch * layers
    held = np.zeros((sets, 0), np.int64)
    dropped = [np.zeros((sets, 0), np.int64)]
    for t in range(count):
        excess = max(0, held.shape[1] + k - size)
        if excess:
            order = rng.random(held.shape).argsort(1)
            dropped.append(np.take_along_axis(held, order[:, :excess], 1))
            held = np.take_along_axis(held, np.sort(order[:, excess:], 1), 1)
        held = np.concatenate([held, np.arange(t * k, t * k + k)[None].repeat(sets, 0)], 1)
    gone = np.sort(np.concatenate(dropped, 1), 1)
    short = torch.from_numpy(held).view(layers, batch, -1)
    long = torch.from_numpy(gone).view(layers, batch, -1)
    return list(short), list(long)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """`[B, T, d]` and `[B, m]` -> `[B, m, d]`."""
    return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[-1]))


def long_term(model: FastModel, written: Written, where: list[Tensor]) -> LongTerm | None:
    """The long-term store of the batch, None when nothing has been dropped yet."""
    if where[0].shape[1] == 0:
        return None
    return LongTerm(model, [take(r, w) for r, w in zip(written.rows, where, strict=True)])
