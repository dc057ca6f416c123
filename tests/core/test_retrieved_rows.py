"""Rows kept between questions against projecting all of them anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.retrieved_rows import QUESTIONS_HELD, RetrievedRows


def truth(positions: torch.Tensor) -> torch.Tensor:
    return torch.stack([positions.float(), positions.float() * 2 + 1], dim=1).view(-1, 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=12, unique=True), min_size=1, max_size=25))
def test_any_series_of_questions_gets_its_own_rows(questions):
    """Any order of positions, any overlap, fewer or more than before; the last question is always still held."""
    rows, last = RetrievedRows(), set()
    for wanted in questions:
        projected: list[int] = []
        positions = torch.tensor(wanted, dtype=torch.int64)
        found = rows.load(0, 0, positions, lambda p, out=projected: (out.extend(p.tolist()), truth(p))[1])
        assert torch.equal(found, truth(positions))
        assert len(projected) == len(set(projected))
        pool = rows._pools.get((0, 0))
        if pool is None:  # nothing was wanted so far
            continue
        if len(wanted) <= pool.question and last and len(projected) < len(wanted):
            assert not last & set(projected)
        held = pool.positions[pool.positions >= 0]
        assert len(set(held)) == len(held) and np.all(np.diff(pool.ascending) >= 0)
        last = set(wanted)


def test_what_recent_questions_wanted_is_not_projected_again():
    rows, count = RetrievedRows(), []
    blocks = [torch.arange(10 * i, 10 * i + 10) for i in range(QUESTIONS_HELD)]
    for positions in blocks + blocks:
        rows.load(0, 0, positions, lambda p: (count.append(len(p)), truth(p))[1])
    assert count == [10] * QUESTIONS_HELD


@pytest.mark.parametrize("other", [(1, 0), (0, 1)])
def test_layers_and_rows_are_apart_and_another_source_forgets(other):
    rows, count = RetrievedRows(), []
    positions = torch.arange(5)

    def project(p):
        count.append(len(p))
        return truth(p)

    rows.use("a")
    rows.load(0, 0, positions, project)
    rows.load(*other, positions, project)
    rows.use("a")
    rows.load(0, 0, positions, project)
    assert count == [5, 5]
    rows.use("b")
    rows.load(0, 0, positions, project)
    assert count == [5, 5, 5]


def test_an_interrupt_while_rows_are_put_in_place_leaves_no_row_under_anothers_position(monkeypatch):
    rows, copy = RetrievedRows(1), torch.Tensor.index_copy_

    def interrupted(*arguments):
        copy(*arguments)
        raise KeyboardInterrupt

    first, second = torch.arange(10), torch.arange(5, 15)
    rows.load(0, 0, first, truth)
    monkeypatch.setattr(torch.Tensor, "index_copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rows.load(0, 0, second, truth)
    monkeypatch.undo()
    for positions in (first, second, first):
        assert torch.equal(rows.load(0, 0, positions, truth), truth(positions))
