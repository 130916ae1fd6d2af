"""When and how many, against the paper's schedule and the recorded cut counts."""

from __future__ import annotations

import json
import math

import golden
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowcut.algorithm import schedule


@pytest.mark.parametrize(
    ("layers", "feature_layer", "cuts"),
    [
        (24, 23, list(range(1, 22, 2))),
        (12, 11, [1, 3, 5, 7, 9]),
        (9, 8, [0, 2, 4, 6]),
        (24, 24, list(range(0, 23, 2))),
    ],
)
def test_layers_that_cut(layers: int, feature_layer: int, cuts: list[int]) -> None:
    assert [layer for layer in range(layers) if schedule.cuts_after(layer, feature_layer)] == cuts
    assert schedule.layers_to_last_cut(cuts[-1], feature_layer) == 0


def test_another_interval_still_ends_with_the_last_cut() -> None:
    assert [layer for layer in range(24) if schedule.cuts_after(layer, 23, every=6)] == [3, 9, 15, 21]


def test_a_single_cut_is_the_last() -> None:
    assert [layer for layer in range(24) if schedule.cuts_after(layer, 23, every=None)] == [21]


def test_even_counts_end_at_the_target() -> None:
    counts, targets = [576, 100, 64], [64, 90, 64]
    taken = []
    for layer in range(1, 22, 2):
        cut = schedule.even_count(counts, targets, schedule.layers_to_last_cut(layer, 23), 2)
        taken.append(cut)
        counts = [count - lost for count, lost in zip(counts, cut, strict=True)]
    assert counts == targets
    assert {first for first, _, _ in taken} == {46, 47} and sum(first for first, _, _ in taken) == 512
    assert schedule.even_count([576], [64], 0, None) == [512]


def test_entropy_of_known_distributions() -> None:
    shares = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    entropies = schedule.entropy(shares)
    torch.testing.assert_close(entropies, torch.tensor([math.log(4), 0.0, math.log(2)]))
    assert schedule.entropy_ratio(entropies.tolist(), [4, 4, 2]) == pytest.approx([1.0, 0.0, 1.0])
    assert schedule.entropy_ratio([0.0], [1]).tolist() == [1.0]


@pytest.mark.parametrize("case", ["llava15_clip12", "llava15_clip9", "llava15_clip12_clspatch"])
def test_cut_counts_of_the_reference(case: str) -> None:
    runs = json.loads((golden.FOLDER / case / "meta.json").read_text())["runs"]
    checked = 0
    for run in runs.values():
        for cut in run["vit_prunes"]:
            counts = [cut["tokens_in"] - 1] * run["batch"]
            targets = [run["encoder_target"] - 1] * run["batch"]
            remaining = cut.get("rpl", 0)
            ratio = np.array(cut.get("entropy_ratio", [0.0] * run["batch"]), dtype=np.float32)
            count = schedule.cut_count(ratio, counts, targets, remaining)
            assert max(count) == cut["tokens_in"] - cut["tokens_out"]
            checked += 1
    assert checked >= 5


def test_halves_round_to_even() -> None:
    # (N - T) / sqrt(4) * (1 - 0) = 2.5 and 3.5
    assert schedule.cut_count(np.zeros(2, dtype=np.float32), [15, 17], [10, 10], 4) == [2, 4]


@given(st.integers(1, 600), st.integers(0, 600), st.integers(0, 30), st.floats(0, 1))
def test_never_below_the_target(target: int, extra: int, remaining: int, ratio: float) -> None:
    (cut,) = schedule.cut_count(np.array([ratio], dtype=np.float32), [target + extra], [target], remaining)
    assert 0 <= cut <= extra
    if remaining == 0:
        assert cut == extra
    else:
        assert abs(cut - min(extra, extra / math.sqrt(remaining) * (1 - ratio**2))) <= 0.5 + 1e-3
