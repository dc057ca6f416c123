"""What memory tokens are like after so many updates, beside what they were like at the start: norms and drift.

Everything is by layer. Norms are of short- and long-term tokens; drift is of short-term tokens, of which long-term
memory holds what short-term memory held before. Drift is measured in three ways that can be read without more:

`cosine`    of the mean token now and at the start: 1 is the same direction.
`shift`     distance of the two means in units of the spread of single tokens; what two samples of one set differ by on
            average is taken off, so 0 is no difference, and 1 is as far as a token lies from the mean (as
            `memory_anatomy.apart`).
`spectrum`  half the sum of absolute differences of the two normalised spectra of the covariance: 0 is the same shape,
            1 is nothing in common. `rank` is the participation ratio of the spectrum: dimensions that tokens fill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mplus_cli.core.memory import Memory
from mplus_cli.evaluation.tasks.memory_writes import spread

SPECTRUM_TOKENS = 1_024  # that a spectrum is made of, at most: as many in every layer and at every point
LONG_TOKENS = 4_096  # of long-term memory that are looked at, at most, evenly spread over it
DRIFT = ("cosine", "shift", "spectrum")
DIGITS = 6


@dataclass(frozen=True)
class Moments:
    """Of the short-term tokens of one layer.

    Attributes:
        count: tokens; mean: [d]; spread: sum of the variances of the d numbers (unbiased).
        spectrum: eigenvalues of the covariance, largest first, as shares of their sum.
    """

    count: int
    mean: list[float]
    spread: float
    spectrum: list[float]

    @classmethod
    def of(cls, rows: torch.Tensor) -> Moments | None:
        """Of rows [n, d]; None where they have none (fewer than two, or numbers that are not finite)."""
        if len(rows) < 2 or not bool(rows.isfinite().all()):
            return None
        rows = rows.double()
        mean = rows.mean(0)
        chosen = rows[spread(SPECTRUM_TOKENS, len(rows))]
        squares = torch.linalg.svdvals(chosen - chosen.mean(0)).square()
        shares = squares / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny)
        return cls(len(rows), mean.tolist(), float(rows.var(0).sum()), shares.tolist())

    @property
    def rank(self) -> float | None:
        """Participation ratio of the spectrum; None where all tokens are the same."""
        squares = sum(share * share for share in self.spectrum)
        return 1 / squares if squares else None


def moments(memory: Memory) -> list[Moments | None]:
    """Of every layer of a one-row memory."""
    return [Moments.of(_short_term(memory, layer)) for layer in range(memory.num_layers)]


def to_plain(start: Sequence[Moments | None]) -> list[dict[str, Any] | None]:
    """As JSON."""
    return [None if one is None else asdict(one) for one in start]


def from_plain(plain: Sequence[Mapping[str, Any] | None]) -> list[Moments | None]:
    """What `to_plain` was given, exactly."""
    return [None if one is None else Moments(**one) for one in plain]


@torch.inference_mode()
def measure(memory: Memory, start: Sequence[Moments | None]) -> list[dict[str, Any]]:
    """One plain record for every layer of a one-row memory. What cannot be said is None.

    `norm`, `norm_spread`, `norm_max` and `long_norm` ...: mean, standard deviation and largest of the norms of tokens;
    `not_finite`: tokens with a number in them that is none (of long-term memory, among those that were looked at).
    """
    records = []
    for layer, before in enumerate(start):
        rows = _short_term(memory, layer)
        now = Moments.of(rows)
        record: dict[str, Any] = {**_norms(rows, ""), **_drift(before, now), "rank": None if now is None else now.rank}
        record["not_finite"] = _not_finite(rows)
        if memory.long_term:
            store = memory.long_term[0].layers[layer]
            held = store.fetch(layer, store.all_positions()[spread(LONG_TOKENS, len(store))]).float()
            record |= _norms(held, "long_")
            record["not_finite"] += _not_finite(held)
        records.append({key: _rounded(value) for key, value in record.items()})
    return records


def overall(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over layers; of the largest norm and of what is not finite, the largest and the sum."""
    found: dict[str, Any] = {}
    for key in layers[0]:
        held = [layer[key] for layer in layers if layer[key] is not None]
        total = {"not_finite": sum, "norm_max": max, "long_norm_max": max}.get(key, _mean)
        found[key] = _rounded(total(held)) if held else None  # type: ignore[operator]
    return found


def _short_term(memory: Memory, layer: int) -> torch.Tensor:
    return memory.short_term.layer(layer)[0, : memory.short_term.fill[0]].float()


def _norms(rows: torch.Tensor, prefix: str) -> dict[str, float | None]:
    norms = rows.norm(dim=1)
    norms = norms[norms.isfinite()]
    if not len(norms):
        return {f"{prefix}norm": None, f"{prefix}norm_spread": None, f"{prefix}norm_max": None}
    spread_of = float(norms.std(unbiased=False))
    return {
        f"{prefix}norm": float(norms.mean()),
        f"{prefix}norm_spread": spread_of,
        f"{prefix}norm_max": float(norms.max()),
    }


def _drift(before: Moments | None, now: Moments | None) -> dict[str, float | None]:
    if before is None or now is None:
        return dict.fromkeys(DRIFT)
    a, b = torch.tensor(before.mean, dtype=torch.float64), torch.tensor(now.mean, dtype=torch.float64)
    chance = before.spread / before.count + now.spread / now.count
    within = (before.spread + now.spread) / 2
    squared = float((a - b).square().sum()) - chance
    width = max(len(before.spectrum), len(now.spectrum))
    shares = [torch.tensor(one.spectrum + [0.0] * (width - len(one.spectrum))) for one in (before, now)]
    return {
        "cosine": float(F.cosine_similarity(a, b, dim=0)),
        "shift": math.sqrt(max(0.0, squared) / within) if within else None,
        "spectrum": float((shares[0] - shares[1]).abs().sum()) / 2,
    }


def _not_finite(rows: torch.Tensor) -> int:
    return int((~rows.isfinite().all(dim=1)).sum())


def _rounded(value: float | None) -> float | None:
    return round(value, DIGITS) if isinstance(value, float) and math.isfinite(value) else value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
