"""The picture of a run, and the numbers it is made from."""

from __future__ import annotations

import pytest

from mplus_cli.training.curves import plot_curves, smooth
from mplus_cli.training.journal import scalars


def line(step: int) -> dict:
    return {
        "step": step,
        "loss": 3 - step / 200,
        "tasks": {"two_chunk" if step % 3 else "revisit": {"loss": 3 - step / 200, "share": 1.0}},
        "parts": {"ce": 2.0, "recall": 0.3, "recall_over_chance": 9.0} if step % 2 else {"ce": 2.0},
        "rates": {"write_adapter": 1e-3 / step, "read_adapter": 1e-3 / step, "retriever": 1e-4},
        "gradient_norm": 1.0,
        "tokens_per_second": 1000.0,
        "mfu": None,
        "peak_bytes": 10**9,
        "seconds": {"total": 1.0, "data": 0.1},
    }


def test_a_picture_is_made_of_a_journal(tmp_path):
    assert plot_curves([line(step) for step in range(1, 300)], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_one_line_makes_no_curve(tmp_path):
    assert not plot_curves([line(1)], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_only_finite_numbers_become_curves():
    found = dict(scalars(line(1) | {"gradient_norm": float("nan")}))
    assert found["loss"] == pytest.approx(2.995)
    assert found["tasks/two_chunk"] == pytest.approx(2.995)
    assert found["parts/recall"] == 0.3
    assert not {"mfu", "gradient_norm", "step"} & found.keys()


def test_smoothing_has_no_bias_at_the_beginning_and_follows():
    assert smooth([5.0] * 200) == pytest.approx([5.0] * 200)
    values = [0.0] * 500 + [1.0] * 500
    assert smooth(values)[499] == pytest.approx(0.0)
    assert smooth(values)[-1] == pytest.approx(1.0, abs=0.01)
