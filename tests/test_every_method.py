"""What every method must do on every family it supports; it must refuse the others and say why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import families
import pytest
import tiny
import tiny_qwen
import torch
import zoo
from torch import Tensor

from flowcut import METHODS, Method, UnsupportedModelError, attach, make_method

BUDGET = 12
FORMS = ("flowcut_plus(relevance=text)",)
"""Settings under which a method cuts elsewhere than by default."""

EVERY = [pytest.param(one, case, id=f"{one}-{case}") for case in zoo.CASES for one in sorted([*METHODS, *FORMS])]

# A random model may well answer with a placeholder, which without a cache asks for one more image, or with an end.
SILENT = [2, tiny.IMAGE_TOKEN, families.VIDEO_TOKEN, tiny_qwen.IMAGE, tiny_qwen.VIDEO]
OPTIONS: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": SILENT}


SETTINGS: dict[str, dict[str, Any]] = {"pyramiddrop": {"layers": (1, 2, 3)}, "sparsevlm": {"layers": (0, 1, 2)}}
"""Of methods whose defaults name decoder layers that the tiny models do not have."""

ON_AVERAGE = {"sparsevlm"}
"""Methods whose budget is an average over layers."""


def make(method: str, **budget: Any) -> Method:
    """The method with settings that fit the tiny models."""
    return replace(make_method(method, target_num=4), **{"target_num": None, **budget, **SETTINGS.get(method, {})})


def supported(method: str, case: zoo.Case) -> bool:
    """Whether attaching works; where it does not, the error gives a reason."""
    try:
        attach(case.model, make(method, target_num=BUDGET)).detach()
    except UnsupportedModelError as error:
        assert len(str(error)) > 40
        return False
    return True


def generated(model: Any, inputs: dict[str, Tensor], **options: Any) -> list[list[int]]:
    """Answers as token ids."""
    answers = model.generate(**inputs, **OPTIONS, **options)
    return answers[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(("method", "name"), EVERY)
@torch.no_grad()
def test_on_every_family(method: str, name: str) -> None:
    case = zoo.case(name)
    model = case.model
    if not supported(method, case):
        pytest.skip(f"{method} refuses {name}")
    batch = case.together(case.samples)
    uncut = model(**batch).logits
    before, registry = families.fingerprint(model), families.registered()
    with attach(model, make(method, retain_ratio=1.0)) as handle:
        assert torch.equal(model(**batch).logits, uncut)
        assert all(image.whole for image in handle.trace.images)
    with attach(model, make(method, target_num=BUDGET, outputs="kept")) as handle:
        kept, logits, answers = [], [], []
        for sample in case.samples:
            single = case.together([sample])
            logits.append(model(**single).logits[0])
            kept += [image.kept.tolist() for image in handle.trace.images]
            for image in handle.trace.images:
                assert image.kept.tolist() == sorted(set(image.kept.tolist()))
                assert image.kept.max() < torch.tensor(image.grid).prod()
                assert len(image.sources) == len(image.kept)
                assert all(patch in own for patch, own in zip(image.kept.tolist(), image.sources, strict=True))
            answers += generated(model, single)
        assert generated(model, single, use_cache=False) == answers[-1:]
        together = model(**batch).logits
        trace = handle.trace
        assert trace.sequence is not None
        assert sorted(image.kept.tolist() for image in trace.images) == sorted(kept)
        left = [int((row >= 0).sum()) for row in trace.sequence.stretches[-1].image]
        if method not in ON_AVERAGE:
            assert left == [BUDGET * len(images) for images in trace.sequence.images_of]
        assert all(0 < after < before.sum() for after, before in zip(left, trace.sequence.uncut_attended, strict=True))
        mask = trace.sequence.stretches[-1].new_mask.bool()
        for row, expected in enumerate(logits):
            torch.testing.assert_close(together[row][mask[row]], expected, rtol=1e-5, atol=2e-5)
        assert generated(model, batch) == answers
        assert trace.sequence.flops[0].total < trace.sequence.uncut_flops[0].total
    assert families.fingerprint(model) == before
    assert families.registered() == registry
    assert torch.equal(model(**batch).logits, uncut)


def test_every_method_says_what_it_is() -> None:
    for name, method in METHODS.items():
        assert method.name == name and method.summary and method.stage and method.__doc__
