"""Choosing tokens: against plain Python on random ragged batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowcut.algorithm.selection import compose, counts_mask, gather_tokens, put_tokens, top_in_order, with_prefix


@given(st.data())
def test_top_in_order_is_a_sorted_top_k(data: st.DataObject) -> None:
    batch, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    alive = data.draw(st.lists(st.integers(1, width), min_size=batch, max_size=batch))
    counts = [data.draw(st.integers(1, real)) for real in alive]
    scores = torch.rand(batch, width, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999))))
    index = top_in_order(scores, counts, counts_mask(alive, width))
    assert index.shape == (batch, max(counts))
    for row in range(batch):
        real = scores[row, : alive[row]].tolist()
        expected = sorted(sorted(range(alive[row]), key=lambda i: -real[i])[: counts[row]])
        assert index[row, : counts[row]].tolist() == expected
        assert (index[row, counts[row] :] == 0).all()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("depth", [(), (5,), (2, 5)])
@pytest.mark.parametrize("strided", [False, True])
def test_tokens_are_gathered_from_any_layout_with_their_gradients(
    batch: int, depth: tuple[int, ...], strided: bool
) -> None:
    made = torch.Generator().manual_seed(0)
    states = torch.randn(*((7, batch) if strided else (batch, 7)), *depth, generator=made)
    states = (states.transpose(0, 1) if strided else states).requires_grad_()
    index = torch.randint(7, (batch, 4), generator=made)
    taken, expected = gather_tokens(states, index), torch.stack([states[row, index[row]] for row in range(batch)])
    assert torch.equal(taken, expected)
    weight = torch.randn(taken.shape, generator=made)
    one, other = (torch.autograd.grad((some * weight).sum(), states)[0] for some in (taken, expected))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("depth", [(5,), (2, 5)])
def test_tokens_are_put_back_with_their_gradients(batch: int, depth: tuple[int, ...]) -> None:
    made = torch.Generator().manual_seed(0)
    base = torch.randn(batch, 7, *depth, generator=made, requires_grad=True)
    states = torch.randn(batch, 4, *depth, generator=made, requires_grad=True)
    index = torch.stack([torch.randperm(7, generator=made)[:4] for _ in range(batch)])
    put = put_tokens(base, index, states)
    expected = base.clone()
    for row in range(batch):
        expected[row, index[row]] = states[row]
    assert torch.equal(put, expected) and put.data_ptr() != base.data_ptr()
    weight = torch.randn(put.shape, generator=made)
    ours, theirs = (torch.autograd.grad((some * weight).sum(), (base, states)) for some in (put, expected))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("batch", [1, 3])
def test_no_token_is_taken_from_a_neighbour(batch: int) -> None:
    with pytest.raises(IndexError):
        gather_tokens(torch.zeros(batch, 7, 5), torch.full((batch, 2), 7))
    with pytest.raises(IndexError):
        put_tokens(torch.zeros(batch, 7, 5), torch.full((batch, 2), 7), torch.ones(batch, 2, 5))
    with pytest.raises((IndexError, RuntimeError)):
        gather_tokens(torch.zeros(batch, 7, 5), torch.zeros(batch + 1, 2, dtype=torch.long))


def test_gather_compose_prefix() -> None:
    states = torch.arange(24).reshape(2, 4, 3)
    index = torch.tensor([[0, 2], [1, 3]])
    assert gather_tokens(states, index)[1].tolist() == [[15, 16, 17], [21, 22, 23]]
    assert gather_tokens(states[..., 0], index).tolist() == [[0, 6], [15, 21]]
    assert compose(torch.tensor([[1, 4, 7]]), torch.tensor([[0, 2]])).tolist() == [[1, 7]]
    assert with_prefix(index, 1).tolist() == [[0, 1, 3], [0, 2, 4]]
    assert with_prefix(index, 0).tolist() == index.tolist()
