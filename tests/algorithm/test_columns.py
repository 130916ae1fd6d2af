"""Dropping columns from padded batches, against plain Python lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowcut.algorithm.columns import all_columns, keep_columns, laid_out
from flowcut.algorithm.positions import shifted_positions


@pytest.mark.parametrize("side", ["left", "right"])
@given(data=st.data())
def test_rows_keep_their_tokens_in_order(side: str, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(2, 8), min_size=1, max_size=4))
    width = max(lengths)
    keep = torch.ones(len(lengths), width, dtype=torch.bool)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    kept: list[list[int]] = []
    for row, length in enumerate(lengths):
        start = width - length if side == "left" else 0
        mask[row, start : start + length] = 1
        dropped = data.draw(st.sets(st.integers(start + 1, start + length - 1), max_size=length - 1))
        keep[row, list(dropped)] = False
        kept.append([c for c in range(start, start + length) if c not in dropped])
    tokens = torch.arange(width).expand(len(lengths), width) + 100
    cut = keep_columns(keep, mask)
    columns, taken, attended = cut.columns(), cut.take(tokens, -7), cut.take(mask)
    longest = max(len(row) for row in kept)
    assert columns.shape == (len(lengths), longest)
    for row, expected in enumerate(kept):
        padding = [-1] * (longest - len(expected))
        right = side == "right" and min(lengths) < width
        assert columns[row].tolist() == (expected + padding if right else padding + expected)
        assert taken[row].tolist() == [-7 if c < 0 else c + 100 for c in columns[row].tolist()]
        assert attended[row].tolist() == [int(c >= 0) for c in columns[row].tolist()]


def test_inner_padding_stays_masked() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1]])
    cut = keep_columns(torch.tensor([[True, True, True, False, True]]), mask)
    assert cut.columns().tolist() == [[1, 2, 4]]
    assert cut.take(mask).tolist() == [[1, 0, 1]]


def test_positions() -> None:
    keep = torch.tensor([[True, False, True, False, True], [True, True, True, True, False]])
    cut = keep_columns(keep, None)
    positions = torch.arange(10, 15).expand(2, 5)
    before = torch.tensor([2, 0])
    assert cut.columns().tolist() == [[-1, 0, 2, 4], [0, 1, 2, 3]]
    assert shifted_positions(positions, cut, before, ~keep, compact=True).tolist() == [
        [0, 8, 9, 10],
        [10, 11, 12, 13],
    ]
    assert shifted_positions(positions, cut, before, ~keep, compact=False).tolist() == [
        [0, 10, 12, 14],
        [10, 11, 12, 13],
    ]


def test_every_column_takes_the_value_of_the_last_that_stays_before_it() -> None:
    keep = torch.tensor([[True, False, False, True, True], [False, True, False, True, True]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    cut = keep_columns(keep, mask)
    assert cut.stay().tolist() == [[True, False, False, True, True], [False, True, False, True, False]]
    values = cut.take(torch.arange(5).expand(2, 5) + 1.0, filler=-7)
    assert laid_out(values, cut.last_kept()).tolist() == [[1, 1, 1, 4, 5], [0, 2, 2, 4, 4]]


def test_a_cut_that_drops_nothing_is_whole_and_so_are_two_of_them() -> None:
    nothing = all_columns(torch.ones(2, 3, dtype=torch.bool))
    something = keep_columns(torch.tensor([[True, False, True]] * 2), None)
    assert nothing.whole and nothing.then(nothing).whole
    assert not something.whole and not nothing.then(something).whole
    assert nothing.last_kept().tolist() == [[0, 1, 2]] * 2


def test_positions_begin_again_with_every_sample_of_a_row() -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    starts = torch.tensor([[False, False, False, False, True, False, False]])
    keep = torch.tensor([[True, False, True, True, True, False, True]])
    cut = keep_columns(keep, None)
    nothing_before = torch.zeros(1, dtype=torch.long)
    assert shifted_positions(positions, cut, nothing_before, ~keep, True, starts).tolist() == [[0, 1, 2, 0, 1]]
    assert shifted_positions(positions, cut, nothing_before, ~keep, False, starts).tolist() == [[0, 2, 3, 0, 2]]


def test_visual_columns_stay_in_the_padding_unless_they_are_cut() -> None:
    keep = torch.tensor([[True, True, True, False, True, True], [True, True, True, True, True, True]])
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    visual = torch.tensor([[False, False, True, True, True, False], [False] * 6])
    assert keep_columns(keep, mask).columns().tolist() == [[0, 1, -1, -1], [0, 1, 2, 3]]
    assert keep_columns(keep, mask, visual).columns().tolist() == [[0, 1, 2, 4], [0, 1, 2, 3]]
