"""Kernels and waits are counted as torch dispatches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowcut.measure.kernels import KernelCounter

X = torch.arange(12.0).reshape(3, 4)
MASK = X > 4
WORK: dict[str, tuple[Callable[[], Any], int, int, int]] = {
    "views": (lambda: X.reshape(4, 3).transpose(0, 1)[1:, None].expand(2, 3, 4).detach(), 0, 0, 0),
    "fresh memory": (lambda: torch.empty_like(X), 0, 0, 0),
    "arithmetic": (lambda: (X * 2 + 1).sum(), 3, 0, 0),
    "in place": (lambda: X.clone().mul_(2), 2, 0, 0),
    "matmul, one of its views unsafe": (lambda: torch.matmul(X[None, None], X.mT), 1, 0, 0),
    "a cast": (lambda: X.to(torch.float64), 1, 0, 0),
    "no cast": (lambda: X.float(), 0, 0, 0),
    "item": (lambda: X[0, 0].item(), 0, 1, 0),
    "bool": (lambda: bool((X > 20).any()), 2, 1, 0),
    "int": (lambda: int(X[0, 0]), 0, 1, 0),
    "contained": (lambda: 3.0 in X, 2, 1, 0),
    "tolist": (lambda: X.tolist(), 0, 1, 0),
    "numpy": (lambda: X.numpy(), 0, 1, 0),
    "to the host": (lambda: X.cpu(), 0, 1, 0),
    "to the host by name": (lambda: X.to("cpu"), 0, 1, 0),
    "to where it is": (lambda: X.to(X.device), 0, 0, 0),
    "nonzero": (lambda: MASK.nonzero(), 1, 1, 0),
    "where without values": (lambda: torch.where(MASK), 1, 1, 0),
    "where with values": (lambda: torch.where(MASK, X, -X), 2, 0, 0),
    "boolean index": (lambda: X[MASK], 1, 1, 0),
    "index": (lambda: X[X[:, 0].long()[:0]], 2, 0, 0),
    "masked select": (lambda: X.masked_select(MASK), 1, 1, 0),
    "unique": (lambda: X.unique(), 1, 1, 0),
    "repeated by counts": (lambda: X.repeat_interleave(X[:, 0].long(), dim=0), 3, 1, 0),
    "repeated a known number of times": (lambda: X.repeat_interleave(2, dim=0), 1, 0, 0),
    "equal": (lambda: torch.equal(X, X), 1, 1, 0),
    "numbers of the host": (lambda: torch.tensor([1, 2]), 0, 0, 1),
    "filled": (lambda: X.new_full((3,), 2.0), 1, 0, 0),
}


@pytest.mark.parametrize("name", WORK)
def test_kernels_waits_and_uploads_are_told_apart(name: str) -> None:
    work, kernels, waits, uploads = WORK[name]
    with KernelCounter() as counted:
        work()
    assert (counted.kernels, counted.waits, counted.uploads) == (kernels, waits, uploads)
    assert counted.waits_by_name.total() == waits


def put(values: Tensor) -> Tensor:
    copy = X.clone()
    copy[MASK] = values
    return copy


def test_writing_many_numbers_through_a_mask_waits_and_one_does_not() -> None:
    with KernelCounter() as many:
        put(torch.zeros(7))
    with KernelCounter() as one:
        put(torch.zeros(()))
    assert (many.waits, one.waits) == (1, 0)


def test_counters_nest_and_change_no_result() -> None:
    with KernelCounter() as outer:
        first = X + 1
        with KernelCounter() as inner:
            second = X * 2
    assert torch.equal(first, X + 1) and torch.equal(second, X * 2)
    assert (outer.kernels, inner.kernels) == (2, 1)
    assert outer.kernels_by_name == {"add": 1, "mul": 1}


def test_counting_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), KernelCounter() as counted:
        raise ZeroDivisionError
    torch.arange(3).tolist()
    assert (counted.kernels, counted.waits) == (0, 0)


def test_on_another_device_only_its_own_work_counts() -> None:
    with KernelCounter("meta") as counted:
        X.tolist()
        there = torch.ones(3, device="meta") + 1
        X.to("meta")
        there.copy_(X[0, :3])
    assert (counted.kernels, counted.waits, counted.uploads) == (2, 0, 2)
