"""What a compiled choice keeps is what the uncompiled one keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from flowcut import FlowCutPlus, attach, compile_choices
from flowcut.algorithm import compiling, coverage
from flowcut.algorithm.coverage import largest_coverage
from flowcut.algorithm.selection import top_in_order
from flowcut.methods import cdpruner, vispruner
from flowcut.methods.cdpruner import largest_determinant
from flowcut.methods.flowcut_plus_choice import comparable, merged_into, novelty
from flowcut.methods.saliency import unit
from flowcut.methods.scope import salient_cover
from flowcut.methods.vispruner import important_and_diverse, removal_rounds

TOKENS = 40
WIDTH = 64


TOGETHER: dict[str, dict[Callable[..., Any], dict[tuple[object, ...], compiling.Compiled]]] = {}
"""What the tests here have compiled, by compiler, so that each shape is compiled once."""

COMPILERS = ["none", pytest.param("inductor", marks=pytest.mark.compiled)]
"""What is compiled as it stands, and as torch's compiler makes code of it."""


def as_it_stands(function: Callable[..., Any], **settings: bool) -> Callable[..., Any]:
    """Takes the place of ``torch.compile``."""
    return function


@pytest.fixture(autouse=True, params=COMPILERS)
def _shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "none":
        monkeypatch.setattr(torch, "compile", as_it_stands)
    monkeypatch.setattr(compiling, "_compiled", TOGETHER.setdefault(request.param, {}))
    monkeypatch.setattr(compiling, "_wanted", False)
    for module in (coverage, cdpruner, vispruner):
        # Fewer steps are compiled sooner.
        monkeypatch.setattr(module, "STEPS", 3)


def drawn(sets: int, kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and qualities; in ``"twice"`` every token stands there twice, in ``"one"`` all are the same."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(sets, TOKENS, WIDTH, generator=generator) + torch.randn(WIDTH, generator=generator)
    quality = torch.rand(sets, TOKENS, generator=generator) + 0.05
    if kind == "twice":
        features[:, 1::2], quality[:, 1::2] = features[:, ::2], quality[:, ::2]
    if kind == "one":
        features[:], quality[:] = features[:, :1], 0.5
    if kind == "narrow":
        features[..., 6:] = 0.0
    return features, quality


def both(choose: Callable[[], Tensor]) -> Tensor:
    """The choice, which is the same compiled."""
    plain = choose()
    with pytest.MonkeyPatch.context() as patch, compile_choices():
        calls: list[str] = []
        call = compiling.Compiled.__call__
        patch.setattr(
            compiling.Compiled, "__call__", lambda self, *given: calls.append(self.name) or call(self, *given)
        )
        compiled = choose()
    assert calls and compiled.tolist() == plain.tolist()
    return plain


KINDS = pytest.mark.parametrize("kind", ["", "twice", "one", "narrow"])
COUNTS = pytest.mark.parametrize("counts", [(7,), (18,), (TOKENS,), (18, 7, TOKENS)])


@KINDS
@COUNTS
def test_scope(counts: tuple[int, ...], kind: str) -> None:
    for seed in range(5):
        features, quality = drawn(len(counts), kind, seed)
        index = both(lambda features=features, quality=quality: salient_cover(features, quality, counts))
        assert len(set(index[0, : counts[0]].tolist())) == counts[0]


@KINDS
@COUNTS
def test_flowcut_plus(counts: tuple[int, ...], kind: str) -> None:
    size = torch.arange(TOKENS).remainder(4).add(1.0).expand(len(counts), -1).contiguous()
    for seed in range(5):
        features, quality = drawn(len(counts), kind, seed)
        index = both(lambda features=features, quality=quality: largest_coverage(features, quality, counts, size))
        assert len(set(index[0, : counts[0]].tolist())) == counts[0]


def test_flowcut_plus_behind_tokens_that_are_taken_first_and_with_padding() -> None:
    features, quality = drawn(1, "")
    valid, first = (torch.arange(TOKENS) < 33)[None], torch.tensor([[7, 2, 30]])
    index = both(lambda: largest_coverage(features, quality, (21,), None, valid, first))
    assert set(first[0].tolist()) <= set(index[0].tolist()) and int(index.max()) < 33


@KINDS
@pytest.mark.parametrize("tokens", [19, TOKENS])
def test_cdpruner(tokens: int, kind: str) -> None:
    for seed in range(5):
        features, quality = drawn(1, kind, seed)
        normed = unit(features[0])
        kernel = quality[0][:, None] * (normed @ normed.T) * quality[0]
        index = both(lambda kernel=kernel: largest_determinant(kernel.clone(), tokens))
        assert len(set(index.tolist())) == tokens


@KINDS
@pytest.mark.parametrize(("tokens", "important", "step"), [(4, 2, 2), (7, 3, 4)])
def test_vispruner(tokens: int, important: int, step: int, kind: str) -> None:
    for seed in range(5):
        features, quality = drawn(1, kind, seed)
        index = both(lambda f=features, q=quality: important_and_diverse(q[0], f[0], tokens, important, step))
        assert len(set(index.tolist())) == tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_decides_nothing(dtype: torch.dtype) -> None:
    cosines = torch.rand(600, 600, generator=torch.Generator().manual_seed(0))
    places = torch.arange(600.0)
    plain = removal_rounds(cosines, places, 8, 3)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(removal_rounds(cosines, places, 8, 3), plain) and plain.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@KINDS
def test_what_is_merged_in_the_tower(kind: str) -> None:
    counts = (20, 23)
    features, strength = drawn(len(counts), kind)
    normed = comparable(features, kind == "")
    index = both(lambda: top_in_order(novelty(normed, strength, 0.5), counts))
    for part in range(2):
        both(lambda part=part: merged_into(normed, index, counts)[part])
    plain = merged_into(normed, index, counts)[2]
    with compile_choices():
        assert torch.allclose(merged_into(normed, index, counts)[2], plain, rtol=0.0, atol=1e-6)


def test_a_model_keeps_the_same() -> None:
    model = tiny.tiny_model()

    def kept() -> Tensor:
        traces = model.get_image_features(tiny.pictures(2)).flowcut_images
        return torch.stack([trace.kept for trace in traces])

    with attach(model, FlowCutPlus(target_num=11)), torch.no_grad():
        both(kept)
