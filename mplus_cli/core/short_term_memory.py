"""Short-term memory: per layer a pool of N tokens; a write drops K at random, appends K (MemoryLLM section 3.1)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch

EMPTY = torch.iinfo(torch.int64).max


@dataclass
class Dropped:
    """What one write removed from one row: creation indices [L, m], ascending, and values [L, m, d]."""

    created: torch.Tensor
    values: torch.Tensor


class ShortTermMemory:
    """A batch of pools.

    A slot that a write frees is overwritten in place, so a write moves K rows and not N. Order is kept as a creation
    index per slot; the model asks for `ranks` when it reads.

    Attributes:
        values: [B, L, N, d] on the compute device, or on the host where they are offloaded.
        created: int64 [B, L, N] on the CPU, creation index of each slot; `EMPTY` where there is none.
        fill: tokens per layer held by each row, equal in all layers.
    """

    def __init__(
        self,
        batch: int,
        layers: int,
        size: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        pin: bool = False,
    ) -> None:
        self.values = torch.zeros(batch, layers, size, width, dtype=dtype, device=device, pin_memory=pin)
        self.created = torch.full((batch, layers, size), EMPTY, dtype=torch.int64)
        self.fill = [0] * batch
        self._newest: list[torch.Tensor | None] = [None] * batch

    @property
    def size(self) -> int:
        return self.values.shape[2]

    def load(self, row: int, values: torch.Tensor, created: torch.Tensor) -> None:
        """Replace the content of one row. values: [L, n, d]; created: int64 [L, n], any order."""
        fill = created.shape[1]
        if fill > self.size:
            raise ValueError(f"{fill} memory tokens do not fit short-term memory of {self.size}")
        self.created[row] = EMPTY
        self.created[row, :, :fill] = created
        self.values[row, :, :fill] = values.to(self.values)
        self.fill[row] = fill
        self._newest[row] = None

    def rows(self, rows: Sequence[int]) -> ShortTermMemory:
        """The given rows, for reading; a copy unless they are all rows in order."""
        if list(rows) == list(range(len(self.fill))):
            return self
        view = copy.copy(self)
        at = torch.tensor(rows)
        view.values, view.created = self.values[at.to(self.values.device)], self.created[at]
        view.fill, view._newest = [self.fill[row] for row in rows], [self._newest[row] for row in rows]
        return view

    def zeroed(self) -> ShortTermMemory:
        """The same tokens, every value 0, for reading."""
        view = copy.copy(self)
        view.values = self.values.new_zeros(1, 1, 1, 1).expand_as(self.values)
        return view

    def newest(self, row: int, count: int) -> torch.Tensor:
        """The `count` newest tokens of a row (all it has, if fewer), oldest first: [L, min(count, fill), d]."""
        count = min(count, self.fill[row])
        slots = self._newest[row]
        if slots is None or slots.shape[1] < count:
            slots = self.created[row, :, : self.fill[row]].argsort(-1)[:, self.fill[row] - count :]
        return self._take(row, slots[:, slots.shape[1] - count :])

    def append(
        self, row: int, tokens: torch.Tensor, created: int, seed: int, ranks: torch.Tensor | None = None
    ) -> Dropped:
        """Append K tokens to a row, dropping as many random ones per layer as there is no room for.

        Args:
            tokens: [L, K, d].
            created: creation index of the first of them.
            seed: the row's seed; which tokens leave depends only on it, on `created` and on their creation indices.
            ranks: int64 [L, m], chronological ranks to drop instead of a random choice (replaying a record).
        """
        layers, count, _ = tokens.shape
        fill = self.fill[row]
        excess = max(0, fill + count - self.size)
        slots = self._slots_to_drop(row, excess, created, seed, ranks)
        dropped = Dropped(self.created[row].gather(1, slots), self._take(row, slots))
        free = torch.arange(fill, fill + count - excess).expand(layers, -1)
        target = torch.cat([slots, free], dim=1)
        self.created[row].scatter_(1, target, torch.arange(created, created + count).expand(layers, -1))
        where = target.to(self.values.device, non_blocking=True)
        self.values[row].scatter_(1, where.unsqueeze(-1).expand(-1, -1, tokens.shape[2]), tokens.to(self.values))
        self.fill[row] = fill + count - excess
        self._newest[row] = target
        return dropped

    def ranks(self, row: int, layer: int) -> torch.Tensor:
        """Chronological rank of every filled slot of a layer, int64 [fill]: 0 is the oldest."""
        return self.created[row, layer, : self.fill[row]].argsort().argsort()

    def ordered(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [L, fill, d] and creation indices [L, fill], oldest first."""
        order = self.created[row, :, : self.fill[row]].argsort(-1)
        return self._take(row, order), self.created[row].gather(1, order)

    def _slots_to_drop(self, row: int, count: int, step: int, seed: int, ranks: torch.Tensor | None) -> torch.Tensor:
        """int64 [L, count], in order of creation."""
        held = self.created[row, :, : self.fill[row]]
        if ranks is not None:
            return held.argsort(-1).gather(1, ranks.sort(-1).values)
        if count == 0:
            return torch.empty(held.shape[0], 0, dtype=torch.int64)
        slots = _lottery(held, seed, step).topk(count, dim=-1, sorted=False).indices
        return slots.gather(1, held.gather(1, slots).argsort(-1))

    def _take(self, row: int, slots: torch.Tensor) -> torch.Tensor:
        where = slots.to(self.values.device, non_blocking=True).unsqueeze(-1)
        return self.values[row].gather(1, where.expand(-1, -1, self.values.shape[3]))


def _lottery(created: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """A uniform 63-bit number per memory token, a pure function of (seed, write, layer, creation index).

    No generator state has to be saved, and neither batch size nor slot layout can change which tokens a write drops.
    The mixing is splitmix64's finaliser.
    """
    layer = torch.arange(created.shape[0]).unsqueeze(1)
    salt = _mix(torch.tensor([seed])) ^ _mix(torch.tensor([step]) + 0x1234567)
    return _mix(created ^ _mix(salt + layer)) & torch.iinfo(torch.int64).max


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch shifts int64 arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
