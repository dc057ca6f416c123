"""Endurance: the figures of a memory and of its drift, against numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mplus_cli.evaluation.tasks.integrity_measures import Moments, from_plain, measure, overall, to_plain
from mplus_cli.evaluation.tasks.memory_anatomy import apart, effective_rank


def test_moments_and_drift_are_those_of_numpy():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 20)) * np.linspace(1, 3, 20) + 2
    later = rng.normal(size=(280, 20)) * np.linspace(2, 1, 20) + 3
    one, two = (Moments.of(torch.tensor(x)) for x in (rows, later))
    assert np.allclose(one.mean, rows.mean(0)) and one.spread == pytest.approx(rows.var(0, ddof=1).sum())
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(rows.T)))[::-1]
    assert np.allclose(one.spectrum, eigenvalues / eigenvalues.sum())
    assert one.rank == pytest.approx(effective_rank(torch.tensor(rows)))
    assert from_plain(json.loads(json.dumps(to_plain([one, None])))) == [one, None]

    memory = model_with(torch.tensor(later, dtype=torch.float32))
    found = measure(memory, [one])[0]
    assert found["shift"] == pytest.approx(apart([(torch.tensor(rows), torch.tensor(later))]), abs=1e-5)
    a, b = rows.mean(0), later.mean(0)
    assert found["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert found["spectrum"] == pytest.approx(np.abs(np.array(one.spectrum) - two.spectrum).sum() / 2, abs=1e-5)
    norms = np.linalg.norm(later, axis=1)
    assert [found[k] for k in ("norm", "norm_spread", "norm_max")] == pytest.approx(
        [norms.mean(), norms.std(), norms.max()], rel=1e-5
    )
    assert found["not_finite"] == 0


class model_with:
    """A memory of one layer that holds these short-term tokens."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.num_layers, self.long_term, self.short_term = 1, [], self
        self.fill, self._rows = [len(rows)], rows

    def layer(self, layer: int) -> torch.Tensor:
        return self._rows[None]


def test_what_does_not_change_has_no_drift_and_what_is_elsewhere_has():
    rows = torch.randn(400, 16, generator=torch.Generator().manual_seed(0)) + 1
    start = [Moments.of(rows)]
    same = measure(model_with(rows), start)[0]
    assert (same["cosine"], same["shift"], same["spectrum"]) == (1.0, 0.0, 0.0)
    flat = torch.zeros_like(rows)
    flat[:, 0] = torch.randn(400, generator=torch.Generator().manual_seed(1))
    moved = measure(model_with(flat - 5), start)[0]
    assert moved["cosine"] < 0 and moved["shift"] > 3 and moved["spectrum"] > 0.8 and moved["rank"] == pytest.approx(1)


def test_tokens_that_are_not_finite_are_counted_and_spoil_no_figure():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    start = [Moments.of(rows)]
    rows[3, 2], rows[7, 0] = float("nan"), float("inf")
    found = measure(model_with(rows), start)
    json.dumps(found, allow_nan=False)
    assert found[0]["not_finite"] == 2 and found[0]["shift"] is None and found[0]["norm"] > 0
    assert overall(found)["not_finite"] == 2 and overall(found)["shift"] is None
