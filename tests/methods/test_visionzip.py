"""VisionZip: the released tokens on random inputs, merging by hand, the paper's split of a budget."""

from __future__ import annotations

import pytest
import tiny
import torch
from released import RELEASED, generator

from flowcut import VisionZip, attach
from flowcut.methods.visionzip import zip_tokens


@pytest.mark.parametrize("seed", range(4))
def test_as_released(seed: int) -> None:
    drawn = generator(seed)
    hidden = torch.randn(1, 41, 16, generator=drawn)[0, 1:]
    attention = torch.rand(1, 4, 41, 41, generator=drawn)[0, :, 0, 1:].mean(dim=0)
    keys = torch.randn(1, 41, 8, generator=drawn)[0, 1:]
    index, weights = zip_tokens(attention, keys, dominant=9, contextual=4)
    expected = RELEASED["visionzip"][seed]
    is_contextual = ~torch.isin(index, torch.tensor(expected["dominant"]))
    assert index[~is_contextual].tolist() == expected["dominant"]
    torch.testing.assert_close(
        (weights @ hidden)[is_contextual], torch.tensor(expected["contextual"]), rtol=1e-4, atol=1e-5
    )
    assert torch.equal((weights @ hidden)[~is_contextual], hidden[index[~is_contextual]])


def test_merging_by_hand() -> None:
    dominance = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.0, 0.4])
    keys = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.0]])
    # Dominant: 1. Of the others 0, 2, 3, 4, 5 every second, 0 and 3, is a centre; 2 and 5 join 0, 4 joins 3.
    index, weights = zip_tokens(dominance, keys, dominant=1, contextual=2)
    assert index.tolist() == [0, 1, 3]
    assert weights.tolist() == [[1, 0, 0.5, 0, 0, 0.5], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]


@torch.no_grad()
def test_the_trace_tells_what_was_merged() -> None:
    model = tiny.tiny_model()
    with attach(model, VisionZip(dominant=6, contextual=3)) as handle:
        model(input_ids=torch.tensor([tiny.prompt()]), pixel_values=tiny.pictures(1))
    image = handle.trace.images[0]
    assert len(image.kept) == 9 and sum(len(own) > 1 for own in image.sources) <= 3
    assert sorted(torch.cat(image.sources).tolist()) == list(range(tiny.PATCHES))


def test_budget() -> None:
    method = VisionZip(dominant=54, contextual=10)
    assert method.target_num == 64 and method.contextual_of(64) == 10
    assert [VisionZip(target_num=n).contextual_of(n) for n in (64, 128, 192)] == [10, 20, 30]
    with pytest.raises(ValueError, match="not dominant"):
        VisionZip(target_num=63, dominant=54, contextual=10)
    with pytest.raises(ValueError, match="or neither"):
        VisionZip(dominant=54)


def test_contextual_tokens_are_the_nearest_number_to_their_share() -> None:
    method = VisionZip(target_num=64)
    assert [method.contextual_of(tokens) for tokens in (64, 128, 192, 12, 9, 1)] == [10, 20, 30, 2, 1, 0]
