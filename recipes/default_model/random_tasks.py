"""The text-free task: copying random token strings.

Plain question answering from scratch teaches nothing (names are never bound to facts); dense copying comes first. A
batch is `ids [B, T]` and `labels [B, T]`: `labels[b, t]` is the token to be predicted *at* t, -100 where there is none.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

IGNORE = -100


def repeat(
    rng: np.random.Generator, rows: int, length: int, vocabulary: int, longest: int = 48
) -> tuple[Tensor, Tensor]:
    """Random strings of 4 to `longest` tokens, each followed by copies of itself up to `length`; loss on the copies."""
    ids = np.zeros((rows, length), np.int64)
    labels = np.full((rows, length), IGNORE, np.int64)
    for row in range(rows):
        n = int(rng.integers(4, longest + 1))
        text = np.tile(rng.integers(0, vocabulary, n), length // n + 1)[:length]
        ids[row] = text
        labels[row, n:] = text[n:]
    return torch.from_numpy(ids), torch.from_numpy(labels)
