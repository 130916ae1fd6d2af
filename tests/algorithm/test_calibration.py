"""Fixed counts, from what the adaptive schedule does on average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowcut.algorithm import schedule
from flowcut.algorithm.calibration import Calibration, averaged, cutting_layers, fixed_counts, ratios_of


def adaptive(ratios: list[float], patches: int, target: int, feature_layer: int) -> list[int]:
    """Patches before the first layer and after every one, where the ratios are known."""
    after = [patches]
    numbers = iter([*ratios, 1.0])
    for layer in range(feature_layer):
        lost = 0
        if schedule.cuts_after(layer, feature_layer):
            remaining = schedule.layers_to_last_cut(layer, feature_layer)
            (lost,) = schedule.cut_count(np.array([next(numbers)], dtype=np.float32), [after[-1]], [target], remaining)
        after.append(after[-1] - lost)
    return after


def test_one_picture_s_calibration_cuts_as_it_was_cut() -> None:
    ratios = [0.9, 0.8, 0.85, 0.7, 0.6]
    after = adaptive(ratios, 576, 64, 12)
    found = averaged([ratios_of(after, 64, 12, 2)])
    assert found == pytest.approx(ratios, abs=0.01)
    counts = fixed_counts(Calibration(12, 2, (64 / 576,), (found,)), 576, 64)
    assert counts == [after[layer] - after[layer + 1] for layer in cutting_layers(12, 2)]


def test_the_mean_is_that_of_the_share_that_goes() -> None:
    assert averaged([[0.19], [0.51]]) == pytest.approx((0.65**0.5,))
    assert averaged([[1.2]]) == (0.0,)  # rounding may have taken one patch more


def test_budgets_between_those_tried_are_interpolated_and_others_take_the_nearest() -> None:
    calibration = Calibration(4, 2, (0.1, 0.3), ((0.5,), (0.9,)))
    assert calibration.ratios_at(0.2) == pytest.approx([0.7])
    assert calibration.ratios_at(0.05) == [0.5] and calibration.ratios_at(0.9) == [0.9]


@given(st.integers(1, 600), st.integers(0, 600), st.lists(st.floats(0, 1), min_size=10, max_size=10))
def test_every_budget_is_reached(target: int, extra: int, ratios: list[float]) -> None:
    counts = fixed_counts(Calibration(23, 2, (0.5,), (tuple(ratios),)), target + extra, target)
    assert len(counts) == 11 and sum(counts) == extra and min(counts) >= 0
