"""Short-term memory: per layer a pool of N tokens; a write drops K at random, appends K (MemoryLLM section 3.1)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mplus_cli.core.placement import Span, joined, parted

EMPTY = torch.iinfo(torch.int64).max


@dataclass
class Dropped:
    """What one write removed from one row: creation indices [L, m], ascending, and values [l, m, d] of each span."""

    created: torch.Tensor
    parts: list[torch.Tensor]

    @property
    def values(self) -> torch.Tensor:
        """Of all layers, [L, m, d]."""
        return joined(self.parts)


class ShortTermMemory:
    """A batch of pools.

    A slot that a write frees is overwritten in place, so a write moves K rows and not N. Order is kept as a creation
    index per slot, from which a read takes positions.

    Args:
        spans: the layers by device (see `placement`); one span of all layers where a device is given.

    Attributes:
        parts: values of each span, [B, l, N, d], on its device, or on the host where they are offloaded.
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
        spans: Sequence[Span] | torch.device,
        pin: bool = False,
    ) -> None:
        self.spans = [Span(0, layers, spans)] if isinstance(spans, torch.device) else list(spans)
        self.parts = [
            torch.zeros(batch, len(span), size, width, dtype=dtype, device=span.device, pin_memory=pin)
            for span in self.spans
        ]
        self.created = torch.full((batch, layers, size), EMPTY, dtype=torch.int64)
        self.fill = [0] * batch
        self._newest: list[torch.Tensor | None] = [None] * batch

    @property
    def size(self) -> int:
        return self.created.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def values(self) -> torch.Tensor:
        """[B, L, N, d]: the store itself, or a copy on the first device where layers lie on several."""
        return joined(self.parts, dim=1)

    def layer(self, layer: int) -> torch.Tensor:
        """Values of one layer, [B, N, d], where they are."""
        at = next(at for at, span in enumerate(self.spans) if layer < span.end)
        return self.parts[at][:, layer - self.spans[at].first]

    def load(self, row: int, values: torch.Tensor, created: torch.Tensor) -> None:
        """Replace the content of one row. values: [L, n, d]; created: int64 [L, n], any order."""
        fill = created.shape[1]
        if fill > self.size:
            raise ValueError(f"{fill} memory tokens do not fit short-term memory of {self.size}")
        self.created[row] = EMPTY
        self.created[row, :, :fill] = created
        for part, given in zip(self.parts, parted(values, self.spans), strict=True):
            part[row, :, :fill] = given.to(part)
        self.fill[row] = fill
        self._newest[row] = None

    def rows(self, rows: Sequence[int]) -> ShortTermMemory:
        """The given rows, for reading; a copy unless they are all rows in order."""
        if list(rows) == list(range(len(self.fill))):
            return self
        view = copy.copy(self)
        at = torch.tensor(rows)
        view.parts, view.created = [part[at.to(part.device)] for part in self.parts], self.created[at]
        view.fill, view._newest = [self.fill[row] for row in rows], [self._newest[row] for row in rows]
        return view

    def zeroed(self) -> ShortTermMemory:
        """The same tokens, every value 0, for reading."""
        view = copy.copy(self)
        view.parts = [part.new_zeros(1, 1, 1, 1).expand_as(part) for part in self.parts]
        return view

    def newest(self, row: int, count: int) -> torch.Tensor:
        """The `count` newest tokens of a row (all it has, if fewer), oldest first: [L, min(count, fill), d]."""
        return joined(self.newest_parts(row, count))

    def newest_parts(self, row: int, count: int) -> list[torch.Tensor]:
        """The same of each span, [l, min(count, fill), d]."""
        count = min(count, self.fill[row])
        slots = self._newest[row]
        if slots is None or slots.shape[1] < count:
            slots = self.created[row, :, : self.fill[row]].argsort(-1)[:, self.fill[row] - count :]
        return self._take(row, slots[:, slots.shape[1] - count :])

    def append(
        self,
        row: int,
        tokens: torch.Tensor | Sequence[torch.Tensor],
        created: int,
        seed: int,
        ranks: torch.Tensor | None = None,
    ) -> Dropped:
        """Append K tokens to a row, dropping as many random ones per layer as there is no room for.

        Args:
            tokens: [L, K, d], or [l, K, d] of each span.
            created: creation index of the first of them.
            seed: the row's seed; which tokens leave depends only on it, on `created` and on their creation indices.
            ranks: int64 [L, m], chronological ranks to drop instead of a random choice (replaying a record).
        """
        given = parted(tokens, self.spans) if isinstance(tokens, torch.Tensor) else tokens
        layers, count = self.created.shape[1], given[0].shape[1]
        fill = self.fill[row]
        excess = max(0, fill + count - self.size)
        slots = self._slots_to_drop(row, excess, created, seed, ranks)
        dropped = Dropped(self.created[row].gather(1, slots), self._take(row, slots))
        free = torch.arange(fill, fill + count - excess).expand(layers, -1)
        target = torch.cat([slots, free], dim=1)
        self.created[row].scatter_(1, target, torch.arange(created, created + count).expand(layers, -1))
        for part, span, new in zip(self.parts, self.spans, given, strict=True):
            where = target[span.layers].to(part.device, non_blocking=True).unsqueeze(-1)
            part[row].scatter_(1, where.expand(-1, -1, new.shape[2]), new.to(part))
        self.fill[row] = fill + count - excess
        self._newest[row] = target
        return dropped

    def ordered(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [L, fill, d] and creation indices [L, fill], oldest first."""
        order = self.created[row, :, : self.fill[row]].argsort(-1)
        return joined(self._take(row, order)), self.created[row].gather(1, order)

    def _slots_to_drop(self, row: int, count: int, step: int, seed: int, ranks: torch.Tensor | None) -> torch.Tensor:
        """int64 [L, count], in order of creation."""
        held = self.created[row, :, : self.fill[row]]
        if ranks is not None:
            return held.argsort(-1).gather(1, ranks.sort(-1).values)
        if count == 0:
            return torch.empty(held.shape[0], 0, dtype=torch.int64)
        slots = _lottery(held, seed, step).topk(count, dim=-1, sorted=False).indices
        return slots.gather(1, held.gather(1, slots).argsort(-1))

    def _take(self, row: int, slots: torch.Tensor) -> list[torch.Tensor]:
        """Values at slots [L, k], [l, k, d] of each span."""
        taken = []
        for part, span in zip(self.parts, self.spans, strict=True):
            where = slots[span.layers].to(part.device, non_blocking=True).unsqueeze(-1)
            taken.append(part[row].gather(1, where.expand(-1, -1, part.shape[3])))
        return taken


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
