"""What the last questions retrieved, kept as keys and values, so that the next one projects only what is new to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

QUESTIONS_HELD = 4  # on a CPU


def questions_held(device: torch.device, offload: bool) -> int:
    """Elsewhere one, and none of an offloaded memory, since device memory is what a memory model is meant to save."""
    return QUESTIONS_HELD if device.type == "cpu" else 0 if offload else 1


Project = Callable[[torch.Tensor], torch.Tensor]


class RetrievedRows:
    """Projected long-term tokens of the last questions, per layer and row of a memory.

    Questions to one memory share much of what they retrieve, and fetching and projecting it is a large part of a second
    question. Keys are kept without their rotation, since the place of a token among the retrieved changes from question
    to question. Arrival positions are never given twice, so a write does not make held rows untrue; new weights or
    another adapter do (`source`).

    Args:
        questions: how many are held; 0 for nothing.
    """

    def __init__(self, questions: int = QUESTIONS_HELD) -> None:
        self.questions = questions
        self._source: object = None
        self._pools: dict[tuple[int, int], _Pool] = {}

    def use(self, source: object) -> None:
        """Forget everything unless it was made from `source`."""
        if source != self._source:
            self._source = source
            self._pools.clear()

    def load(self, layer: int, row: int, positions: torch.Tensor, project: Project) -> torch.Tensor:
        """Projected rows [k, w] at arrival positions int64 [k] (on the CPU), all different, which are now held.

        Args:
            project: makes the rows [m, w] at positions [m] that are not held.
        """
        pool = self._pools.get((layer, row))
        if pool is None or pool.question < len(positions):
            rows = project(positions)
            if self.questions and len(positions):  # none, where another row of the batch has some
                self._pools[layer, row] = _Pool(positions.numpy(), rows, self.questions)
            return rows
        return pool.load(positions.numpy(), project)


class _Pool:
    """Slots for the rows of a few questions, taken in turn. Looked up by search, since positions grow forever."""

    def __init__(self, positions: np.ndarray, rows: torch.Tensor, questions: int) -> None:
        self.question = len(positions)
        size = self.question * questions
        self.rows = rows.new_empty(size, rows.shape[1])
        self.rows[: self.question] = rows
        self.positions = np.full(size, -1)  # of each slot
        self.positions[: self.question] = positions
        self.order = self.positions.argsort()  # slots by position
        self.ascending = self.positions[self.order]
        self.next = self.question % size

    def load(self, wanted: np.ndarray, project: Project) -> torch.Tensor:
        found = np.searchsorted(self.ascending, wanted)
        slots = self.order[np.minimum(found, len(self.order) - 1)]
        held = self.positions[slots] == wanted
        if not held.all():
            slots[~held] = self._take(wanted[~held], slots[held], project)
        return self.rows.index_select(0, torch.from_numpy(slots).to(self.rows.device))

    def _take(self, new: np.ndarray, kept: np.ndarray, project: Project) -> np.ndarray:
        """Project rows at `new` positions into the slots whose turn it is, but for those `kept` for this question."""
        size = len(self.positions)
        busy = np.zeros(size, dtype=bool)
        busy[kept] = True
        turn = np.arange(self.next, self.next + len(new) + len(kept)) % size
        slots = turn[~busy[turn]][: len(new)]
        self.next = (slots[-1] + 1) % size
        by = new.argsort()  # in order of arrival they are fetched faster
        rising = new[by]
        rows = project(torch.from_numpy(rising))
        self.positions[slots] = -1  # until all is in place: who is interrupted here must not find others' rows
        self.rows.index_copy_(0, torch.from_numpy(slots).to(self.rows.device), rows)
        busy[:], busy[slots] = False, True
        rest = self.order[~busy[self.order]]
        self.positions[slots] = rising
        self.order = np.insert(rest, np.searchsorted(self.positions[rest], rising), slots)
        self.ascending = self.positions[self.order]
        taken = np.empty_like(slots)
        taken[by] = slots
        return taken
