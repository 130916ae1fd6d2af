"""Running part of a layer on some tokens: there and back, gradients included."""

from __future__ import annotations

import torch

from flowcut.stages.tower.narrowing import Narrowing

KEPT = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 0, 1, 0]]).bool()


def ragged() -> Narrowing:
    return Narrowing.to(torch.tensor([[0, 2, 4], [0, 3, 0]]), [3, 2])


def test_there_and_back() -> None:
    states = torch.randn(2, 5, 3, requires_grad=True)
    narrowing = ragged()
    narrow = narrowing.narrow(states)
    assert torch.equal(narrow[0], states[0, [0, 2, 4]]) and torch.equal(narrow[1, :2], states[1, [0, 3]])
    base = torch.randn(2, 5, 3)
    wide = narrowing.widen(narrow, base)
    assert torch.equal(wide, torch.where(KEPT[..., None], states, base))
    wide.sum().backward()
    assert states.grad is not None
    assert torch.equal(states.grad, KEPT[..., None].expand_as(states).float())


def test_only_what_stands_at_other_tokens_gets_the_base_s_gradient() -> None:
    base = torch.randn(2, 5, 3, requires_grad=True)
    ragged().widen(torch.randn(2, 3, 3), base).sum().backward()
    assert base.grad is not None and torch.equal(base.grad, (~KEPT)[..., None].expand_as(base).float())


def test_a_base_of_another_width_or_dtype_gives_way_to_zeros() -> None:
    narrow = torch.randn(2, 3, 3)
    for base in (torch.ones(2, 5, 7), torch.ones(2, 5, 3, dtype=torch.float64)):
        wide = ragged().widen(narrow, base)
        assert wide.dtype == narrow.dtype and not wide[~KEPT].any()
        assert torch.equal(wide[0, [0, 2, 4]], narrow[0]) and torch.equal(wide[1, [0, 3]], narrow[1, :2])


def test_attention_for_some_tokens_stands_in_front() -> None:
    narrowing = ragged()
    narrow = torch.randn(2, 3, 4, 2)
    wide = narrowing.in_front_of(narrow, 5)
    assert wide.shape == (2, 5, 4, 2) and narrowing.in_front
    assert torch.equal(wide[:, :3], narrow) and not wide[:, 3:].any()


def test_more_dimensions() -> None:
    states = torch.randn(1, 4, 2, 3)
    narrowing = Narrowing.to(torch.tensor([[1, 3]]), [2])
    wide = narrowing.widen(narrowing.narrow(states), torch.zeros_like(states))
    assert torch.equal(wide[:, [1, 3]], states[:, [1, 3]]) and not wide[:, [0, 2]].any()
