"""The oracle keeps, or removes, exactly what a question is about."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.mini.oracle import asked_about, keep_only, remove_only


@pytest.fixture
def touched() -> np.ndarray:
    masks = np.zeros((2, 24, 24), bool)
    masks[0, :2, :5] = True  # 10 patches
    masks[1, 10:20, 10:20] = True  # 100 patches
    return masks


def test_keeps_all_of_a_small_item_and_spreads_over_a_large_one(touched: np.ndarray) -> None:
    kept = keep_only(touched, (0, 1), 64, np.random.default_rng(0), fill=False)
    inside = asked_about(touched, (0, 1))
    assert len(kept) == 64
    assert inside[kept].all()
    assert asked_about(touched, (0,))[kept].sum() == 10
    rows = kept[~asked_about(touched, (0,))[kept]] // 24
    assert set(rows.tolist()) == set(range(10, 20))


def test_fills_with_others_only_if_told(touched: np.ndarray) -> None:
    random = np.random.default_rng(0)
    assert keep_only(touched, (0,), 64, random, fill=False).numel() == 10
    filled = keep_only(touched, (0,), 64, random, fill=True)
    assert filled.numel() == 64
    assert (filled.diff() > 0).all()
    assert asked_about(touched, (0,))[filled].sum() == 10
    assert keep_only(touched, (), 64, random, fill=False).numel() == 0


def test_removal_is_the_complement(touched: np.ndarray) -> None:
    assert len(remove_only(touched, (0,))) == 566
    assert not asked_about(touched, (0,))[remove_only(touched, (0,))].any()
    assert len(remove_only(touched, ())) == 576
