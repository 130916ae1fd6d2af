"""Numbers that make choices hard: half formats, equal scores, NaN and infinity, on every family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from flowcut import DivPrune, FastV, FlowCut, NonFiniteError, attach
from flowcut.algorithm.selection import best_first, top_in_order
from flowcut.methods import flowcut_policy
from flowcut.methods.divprune import DivPrunePolicy
from flowcut.methods.fastv import FastVPolicy
from flowcut.methods.flowcut_policy import FlowCutPolicy, pooled_counts
from flowcut.methods.prumerge import prune_and_merge
from flowcut.methods.visionzip import zip_tokens
from flowcut.models import find_parts

BUDGET = 12
FORMATS = ("bfloat16", "float16", "autocast")
NEAR = 24
"""Scores are sums of products over several layers: their error is so many times that of one number of the format."""


def floating(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """A call with its pictures in another format."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def ranked(model: Any, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, set[int]]]:
    """Of every image (or tile) of a call the scores of its patches, and those that were chosen; there is one cut."""
    seen: list[tuple[Tensor, set[int]]] = []

    def record(scores: Tensor, counts: tuple[int, ...], valid: Tensor | None = None) -> Tensor:
        chosen = top_in_order(scores, counts, valid)
        assert scores.dtype == torch.float32
        rows = zip(scores, chosen, counts, strict=True)
        seen.extend((row, set(index[:count].tolist())) for row, index, count in rows)
        return chosen

    monkeypatch.setattr(flowcut_policy, "top_in_order", record)
    with attach(model, FlowCut(target_num=BUDGET, cut_every=None, decoder_layer=None)):
        model(**inputs)
    assert seen
    return seen


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", zoo.CASES)
@torch.no_grad()
def test_half_formats_keep_other_patches_only_where_scores_are_as_good_as_equal(
    name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = zoo.case(name)
    inputs = case.together(case.samples)
    exact = ranked(case.model, inputs, monkeypatch)
    if form == "autocast":
        dtype = torch.bfloat16
        with torch.autocast("cpu", dtype=dtype):
            found = ranked(case.model, inputs, monkeypatch)
    else:
        dtype = getattr(torch, form)
        found = ranked(copy.deepcopy(case.model).to(dtype), floating(inputs, dtype), monkeypatch)
    assert len(found) == len(exact)
    for (scores, kept), (_, other) in zip(exact, found, strict=True):
        assert len(kept) == len(other)
        worst = min(float(scores[patch]) for patch in kept)
        for patch in kept ^ other:
            apart = abs(float(scores[patch]) - worst) / float(scores.max())
            assert apart < NEAR * torch.finfo(dtype).eps, f"patch {patch} is {apart:.2g} away from the last one kept"


@pytest.mark.parametrize("name", ["llava, clip", "qwen2_vl"])
@torch.no_grad()
def test_under_autocast_every_choice_is_made_without_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, asked = zoo.case(name), []

    def watched(policy: Any, function: str) -> None:
        original = getattr(policy, function)

        def call(*arguments: Any) -> Any:
            asked.append(function)
            assert not torch.is_autocast_enabled("cpu")
            return original(*arguments)

        monkeypatch.setattr(policy, function, call)

    watched(FlowCutPolicy, "observe")
    watched(FlowCutPolicy, "select")
    watched(FastVPolicy, "select")
    watched(DivPrunePolicy, "select")
    inputs = case.together(case.samples)
    for method in (FlowCut(target_num=BUDGET), FastV(target_num=BUDGET), DivPrune(target_num=BUDGET)):
        asked.clear()
        with attach(case.model, method), torch.autocast("cpu", dtype=torch.bfloat16):
            case.model(**inputs)
        assert asked


def poisoned(model: Any, module: nn.Module, poison: float) -> Any:
    """Hook a module so that one number of every middle and every last token it puts out is ``poison``.

    The last patch of a tile may be padding, at which FlowCut does not look.
    """

    def put(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        states[..., [states.shape[-2] // 2, -1], 0] = poison

    return module.register_forward_hook(put)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", zoo.CASES)
@torch.no_grad()
def test_what_is_not_finite_names_the_layer_that_saw_it_first(name: str, poison: float) -> None:
    case = zoo.case(name)
    model, inputs = case.model, case.together(case.samples)
    parts = find_parts(model)[1]
    places: list[tuple[Any, nn.Module, str]] = [
        (
            FlowCut(target_num=BUDGET, cut_every=None, decoder_layer=None),
            parts.tower.layers[0],
            r"Vision layer 1 produced NaN or inf",
        ),
        (FastV(target_num=BUDGET), parts.decoder_layers[0], r"Decoder layer 1 produced NaN or inf"),
        (DivPrune(target_num=BUDGET), parts.projector, r"projector.* NaN or inf"),
    ]
    for method, module, message in places:
        with attach(model, method):
            expected = model(**inputs).logits
            hook = poisoned(model, module, poison)
            try:
                with pytest.raises(NonFiniteError, match=message):
                    model(**inputs)
            finally:
                hook.remove()
            assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize(("ratio", "kept"), [(0.99, 36), (0.97, 35), (0.5, 18), (0.013, 1), (0.65, 23), (0.64, 23)])
def test_a_share_of_the_tokens_is_rounded_to_the_nearest_number(ratio: float, kept: int) -> None:
    assert FlowCut(retain_ratio=ratio).tokens_to_keep(36) == kept


@pytest.mark.parametrize("tokens", [12, 36, 700, 2500])
def test_of_equal_scores_those_that_come_first_are_better(tokens: int) -> None:
    equal, some = torch.zeros(2, tokens), tokens // 3
    assert best_first(equal, some).tolist() == [list(range(some))] * 2
    assert top_in_order(equal, (some, 2)).tolist() == [list(range(some)), [0, 1] + [0] * (some - 2)]
    steps = torch.arange(tokens).div(4, rounding_mode="floor").float().flip(0)
    assert best_first(steps, tokens).tolist() == list(range(tokens))


def test_methods_choose_the_first_of_equal_patches() -> None:
    patches, keys = 600, torch.ones(600, 8)
    equal = torch.full((patches,), 1 / patches)
    assert zip_tokens(equal, keys, 64, 0)[0].tolist() == list(range(64))
    index, weights = prune_and_merge(equal, keys, 65, 0.25, 32)
    assert index[:16].tolist() == list(range(16))
    # A centre takes up the first neighbours of equally similar ones, itself left out.
    assert weights[0].nonzero()[:, 0].tolist() == list(range(33))
    assert pooled_counts(torch.zeros(4, 50), (10,) * 4, (4,), None) == (37, 1, 1, 1)
