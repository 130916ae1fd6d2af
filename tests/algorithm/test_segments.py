"""Softmax and choice within segments, against loops."""

from __future__ import annotations

import torch

from flowcut.algorithm.segments import best_within, columns_of, softmax_within
from flowcut.measure.kernels import KernelCounter

SEGMENT = torch.tensor([[-1, 0, 0, -1, 0, 1, 1], [2, 2, 2, 2, -1, -1, -1], [-1] * 7])


def test_softmax_runs_over_each_segment_alone() -> None:
    logits = 200 * torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(0))
    weights = softmax_within(logits, SEGMENT, 3)
    for row, number in ((0, 0), (0, 1), (1, 2)):
        own = SEGMENT[row] == number
        torch.testing.assert_close(weights[row, :, own], logits[row, :, own].softmax(dim=-1))


def test_the_best_of_every_segment_stay_and_so_do_columns_of_none() -> None:
    scores = torch.tensor([[9.0, 1, 3, 9, 2, 5, 5], [4, 4, 4, 4, 0, 0, 0], [0] * 7])
    kept = best_within(scores, SEGMENT, (2, 1, 3))
    assert kept.int().tolist() == [[1, 0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 1, 1, 1], [1] * 7]
    assert best_within(scores, SEGMENT, (9, 9, 9)).all()


def test_columns_that_are_counted_are_found_without_a_wait() -> None:
    member = torch.tensor([False, True, True, False, True])
    with KernelCounter() as counted:
        found = columns_of(member, 3)
    assert found.tolist() == [1, 2, 4] and counted.waits == 0
