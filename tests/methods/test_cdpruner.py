"""CDPruner: the released choice, and every greedy step against explicit determinants."""

from __future__ import annotations

import pytest
import tiny
import torch
from released import RELEASED, generator

from flowcut import CDPruner, attach
from flowcut.methods.cdpruner import CDPrunerPolicy, largest_determinant, scaled_relevance
from flowcut.methods.views import ProjectedView


@pytest.mark.parametrize("seed", range(5))
def test_as_released(seed: int) -> None:
    drawn = generator(seed)
    torch.randn(1, 60, 16, generator=drawn)
    features, text = torch.randn(60, 80, generator=drawn), torch.randn(5, 80, generator=drawn)
    view = ProjectedView(features, torch.arange(60), (6, 10), text, 14)
    assert CDPrunerPolicy(conditional=True).select(view).tolist() == RELEASED["cdpruner"][seed]


def test_every_step_has_the_largest_determinant() -> None:
    factor = torch.randn(9, 12, generator=generator(3))
    kernel = (factor @ factor.T).double()
    chosen: list[int] = []
    for count in range(1, 7):
        rest = [token for token in range(9) if token not in chosen]
        determinants = {token: float(torch.det(kernel[[*chosen, token]][:, [*chosen, token]])) for token in rest}
        chosen.append(max(determinants, key=lambda token: determinants[token]))
        assert largest_determinant(kernel, count).tolist() == sorted(chosen)


def test_more_tokens_than_the_kernel_has_rank() -> None:
    features = torch.randn(12, 3, generator=generator(4))
    assert largest_determinant(features @ features.T, 12).tolist() == list(range(12))
    assert largest_determinant(torch.zeros(4, 4), 3).tolist() == [0, 1, 2]


def test_behind_the_rank_the_diagonal_decides_whatever_it_is_a_multiple_of() -> None:
    lengths = torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0])
    kernel = lengths[:, None] * lengths
    for factor in (1.0, 1e-6, 1e6):
        assert [largest_determinant(factor * kernel, count).tolist() for count in (1, 2, 3)] == [[1], [1, 3], [1, 3, 4]]


def test_relevance() -> None:
    tokens, text = torch.eye(3), torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    means = torch.tensor([(1 + 0.5**0.5) / 2, 0.5**0.5 / 2, 0.0])
    torch.testing.assert_close(scaled_relevance(tokens, text), (means + 1e-6) / means[0])
    assert bool(scaled_relevance(tokens, torch.ones(1, 3)).isfinite().all())


@torch.no_grad()
def test_the_text_behind_the_image_decides() -> None:
    model = tiny.tiny_model()
    pixels = tiny.pictures(1)
    first, other = tiny.prompt(seed=1), tiny.prompt(seed=2)
    before = [5, *other[1:3]]
    kept = {}
    for relevance in ("text_embeddings", "none"):
        with attach(model, CDPruner(target_num=9, relevance=relevance)) as handle:
            for name, tokens in {"first": first, "other": other, "before": [*before, *first[3:]]}.items():
                model(input_ids=torch.tensor([tokens]), pixel_values=pixels)
                kept[relevance, name] = handle.trace.images[0].kept.tolist()
    assert kept["text_embeddings", "first"] != kept["text_embeddings", "other"]
    assert kept["text_embeddings", "first"] == kept["text_embeddings", "before"]
    assert kept["none", "first"] == kept["none", "other"] != kept["text_embeddings", "first"]


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="relevance must be"):
        CDPruner(target_num=3, relevance="clip")  # type: ignore[arg-type]
