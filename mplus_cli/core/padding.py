"""Rows of different lengths as one batch: padding goes before a row, so that all rows end together."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def left_pad(
    rows: Sequence[Sequence[int]], start: Sequence[int] = (), device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids [B, n] with zeros before short rows, and the mask [B, n] that is 0 there.

    Args:
        start: ids in the first columns of every row, before the padding.

    Returns:
        Ids and mask, both int64; None for the mask where nothing is padded.
    """
    width, front = max(map(len, rows)), list(start)
    ids = torch.tensor([front + [0] * (width - len(row)) + list(row) for row in rows], device=device)
    if min(map(len, rows)) == width:
        return ids, None
    mask = torch.ones_like(ids)
    for number, row in enumerate(rows):
        mask[number, len(front) : len(front) + width - len(row)] = 0
    return ids, mask
