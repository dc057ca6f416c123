"""What the last question retrieved, kept as keys and values, so that the next one projects only what is new to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class _Held:
    positions: torch.Tensor  # int64 [k], ascending, on the CPU
    order: torch.Tensor  # int64 [k], place of each position in `rows`
    rows: torch.Tensor  # [k, w]


class RetrievedRows:
    """Projected long-term tokens of the last question, per layer and row of a memory.

    Questions to one memory share much of what they retrieve, and fetching and projecting it is a large part of a second
    question. Keys are kept without their rotation, since the place of a token among the retrieved changes from question
    to question. Arrival positions are never given twice, so a write does not make held rows untrue; new weights or
    another adapter do (`source`).
    """

    def __init__(self) -> None:
        self._source: object = None
        self._held: dict[tuple[int, int], _Held] = {}

    def use(self, source: object) -> None:
        """Forget everything unless it was made from `source`."""
        if source != self._source:
            self._source = source
            self._held.clear()

    def load(
        self, layer: int, row: int, positions: torch.Tensor, project: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Projected rows [k, w] at arrival positions int64 [k] (on the CPU), which become the held ones.

        Args:
            project: makes the rows [m, w] at positions [m] that are not held.
        """
        held = self._held.get((layer, row))
        if held is None or not len(held.positions):
            rows = project(positions)
        else:
            found = np.searchsorted(held.positions.numpy(), positions.numpy())  # torch's takes eight times as long
            at = torch.from_numpy(found).clamp_(max=len(held.positions) - 1)
            new = (held.positions[at] != positions).nonzero().squeeze(1)
            rows = held.rows.index_select(0, held.order[at].to(held.rows.device))
            if len(new):
                rows.index_copy_(0, new.to(rows.device), project(positions[new]))
        ascending, order = positions.sort()
        self._held[layer, row] = _Held(ascending, order, rows)
        return rows
