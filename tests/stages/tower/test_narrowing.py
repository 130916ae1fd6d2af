"""Running part of a layer on some tokens: there and back, gradients included."""

from __future__ import annotations

import torch

from flowcut.stages.tower.narrowing import Narrowing


def test_there_and_back() -> None:
    states = torch.randn(2, 5, 3, requires_grad=True)
    narrowing = Narrowing.to(torch.tensor([[0, 2, 4], [0, 3, 0]]), [3, 2])
    narrow = narrowing.narrow(states)
    assert torch.equal(narrow[0], states[0, [0, 2, 4]]) and torch.equal(narrow[1, :2], states[1, [0, 3]])
    wide = narrowing.widen(narrow, 5)
    kept = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 0, 1, 0]]).bool()
    assert torch.equal(wide, states * kept[..., None])
    wide.sum().backward()
    assert states.grad is not None
    assert torch.equal(states.grad, kept[..., None].expand_as(states).float())


def test_more_dimensions() -> None:
    states = torch.randn(1, 4, 2, 3)
    narrowing = Narrowing.to(torch.tensor([[1, 3]]), [2])
    wide = narrowing.widen(narrowing.narrow(states), 4)
    assert torch.equal(wide[:, [1, 3]], states[:, [1, 3]]) and not wide[:, [0, 2]].any()
