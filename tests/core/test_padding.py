"""Padding of rows of different lengths."""

from __future__ import annotations

from mplus_cli.core.padding import left_pad


def test_padding_is_on_the_left():
    ids, mask = left_pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_padding_stands_between_the_start_and_the_row():
    ids, mask = left_pad([[5, 6, 7], [8]], start=[1])
    assert ids.tolist() == [[1, 5, 6, 7], [1, 0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 0, 0, 1]]


def test_rows_of_one_length_need_no_mask():
    ids, mask = left_pad([[1, 2], [3, 4]], start=[9])
    assert ids.tolist() == [[9, 1, 2], [9, 3, 4]] and mask is None
