"""Confidence intervals of mean scores, resampling items: questions about one memory are not independent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

RESAMPLES = 2_000
LEVEL = 0.95
SEED = 0
METHOD = {
    "method": "percentile bootstrap over items; exact binomial bound where every score is 0, or every one 1",
    "resamples": RESAMPLES,
    "level": LEVEL,
    "seed": SEED,
}
_BLOCK = 1 << 22  # random numbers drawn at once


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        mean: over samples; None without any.
        low, high: None for fewer than two items.
        n: samples; items: that they belong to.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    items: int

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def estimate(scores: Mapping[str, Sequence[float]], bounded: bool = True) -> Estimate:
    """Mean over samples, with the interval that resampling items gives.

    Args:
        scores: item -> scores of its samples.
        bounded: scores lie between 0 and 1. Then a bootstrap of equal extremes, which would claim certainty from
            however few items, gives way to the Clopper-Pearson bound for as many items.
    """
    sums = np.array([math.fsum(values) for values in scores.values() if values], dtype=np.float64)
    counts = np.array([len(values) for values in scores.values() if values], dtype=np.float64)
    items, n = len(sums), int(counts.sum())
    if not n:
        return Estimate(None, None, None, 0, 0)
    mean = float(sums.sum() / counts.sum())
    if items < 2:
        return Estimate(mean, None, None, n, items)
    if bounded and (not sums.any() or np.array_equal(sums, counts)):
        low, high = (0.0, _slack(items)) if mean == 0 else (1 - _slack(items), 1.0)
    else:
        low, high = _percentiles([(sums, counts)], lambda means: means[0])
    return Estimate(mean, low, high, n, items)


def harmonic(parts: Sequence[Mapping[str, Sequence[float]]]) -> Estimate:
    """Harmonic mean of the means of several scores between 0 and 1, all of them resampled with the same items.

    Args:
        parts: for every score, item -> its samples. An item need not have samples of all.
    """
    names = list(dict.fromkeys(item for part in parts for item, values in part.items() if values))
    each = [estimate(part) for part in parts]
    n, items = sum(one.n for one in each), len(names)
    if not each or any(one.mean is None for one in each):
        return Estimate(None, None, None, n, items)
    mean = float(_harmonic([np.array(one.mean) for one in each]))
    if items < 2 or any(one.low is None for one in each):
        return Estimate(mean, None, None, n, items)
    values = [[part.get(name, ()) for name in names] for part in parts]
    columns = [
        (np.array([math.fsum(one) for one in part]), np.array([len(one) for one in part], dtype=np.float64))
        for part in values
    ]
    low, high = _percentiles(columns, _harmonic)
    if low == high:  # every resample gives the same, which would claim certainty
        low, high = (float(_harmonic([np.array(getattr(one, end)) for one in each])) for end in ("low", "high"))
    return Estimate(mean, low, high, n, items)


def _harmonic(means: Sequence[np.ndarray]) -> np.ndarray:
    """Element by element; 0 where one of them is."""
    with np.errstate(divide="ignore"):
        return np.asarray(len(means) / sum(1 / mean for mean in means))


def difference(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]], bounded: bool = True
) -> Estimate:
    """Mean of second minus first over the samples that both have, paired, with its interval over items.

    Args:
        first, second: item -> question -> score.
        bounded: scores lie between 0 and 1. Then samples without any difference leave room for one, as in `estimate`.
    """
    paired = {
        item: [second[item][question] - score for question, score in scores.items() if question in second[item]]
        for item, scores in first.items()
        if item in second
    }
    found = estimate(paired, bounded=False)
    if bounded and found.items > 1 and not any(any(values) for values in paired.values()):
        slack = _slack(found.items)
        return replace(found, low=-slack, high=slack)
    return found


def _slack(items: int) -> float:
    """The Clopper-Pearson upper bound of a share of which none was seen among so many items."""
    return 1 - ((1 - LEVEL) / 2) ** (1 / items)


def _percentiles(
    columns: Sequence[tuple[np.ndarray, np.ndarray]], combine: Callable[[Sequence[np.ndarray]], np.ndarray]
) -> tuple[float, float]:
    """Of what `combine` makes of the ratios of resampled sums to resampled counts, one ratio for every column."""
    items = len(columns[0][0])
    generator = np.random.default_rng(SEED)
    means = []
    for block in _blocks(items):
        chosen = generator.integers(0, items, (block, items))
        with np.errstate(invalid="ignore"):  # a column may have no sample among the items of a draw
            means.append(combine([sums[chosen].sum(1) / counts[chosen].sum(1) for sums, counts in columns]))
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.nanpercentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def _blocks(items: int) -> list[int]:
    size = max(1, min(RESAMPLES, _BLOCK // items))
    return [min(size, RESAMPLES - done) for done in range(0, RESAMPLES, size)]
