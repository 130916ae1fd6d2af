"""Every error of the design: what was wrong, what is allowed, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tiny
import torch
from families import fingerprint
from torch import nn
from transformers import LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flowcut import FlowCut, NonFiniteError, NotAppliedError, UnsupportedModelError, attach, detach, flowcut
from flowcut.methods import make_method


def given() -> dict[str, Any]:
    return {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1)}


@pytest.mark.parametrize("target", [0, -1, 1.5, True, "64"])
def test_target_num_must_be_a_positive_int(target: Any) -> None:
    with pytest.raises(ValueError, match="int of at least 1"):
        FlowCut(target_num=target)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, True, "a third"])
def test_retain_ratio_must_lie_in_0_1(ratio: Any) -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        FlowCut(retain_ratio=ratio)


def test_exactly_one_budget() -> None:
    for budget in ({}, {"target_num": 64, "retain_ratio": 0.5}):
        with pytest.raises(ValueError, match="exactly one of target_num and retain_ratio"):
            FlowCut(**budget)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="exactly one"):
            flowcut(tiny.tiny_model(), **budget)  # type: ignore[arg-type]


def test_other_hyper_parameters() -> None:
    with pytest.raises(ValueError, match=r"history must lie in \[0, 1\)"):
        FlowCut(target_num=9, history=1.0)
    with pytest.raises(ValueError, match="cut_every"):
        FlowCut(target_num=9, cut_every=0)
    with pytest.raises(ValueError, match="positions"):
        FlowCut(target_num=9, positions="absolute")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Unknown method 'flowcat'; known: .*flowcut"):
        make_method("flowcat", target_num=9)


def test_a_target_no_image_could_fill() -> None:
    with pytest.raises(ValueError, match="target_num=2049 is more than the model can produce or read"):
        attach(tiny.tiny_model(), FlowCut(target_num=2049))


def test_unknown_models_and_methods() -> None:
    text_only = LlamaForCausalLM(tiny.tiny_config().text_config)
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM.*Supported: LlavaForConditionalGeneration"):
        attach(text_only, FlowCut(target_num=9))
    with pytest.raises(TypeError, match="FlowCut"):
        attach(tiny.tiny_model(), 64)  # type: ignore[arg-type]
    model = tiny.tiny_model()
    model.model.vision_tower.config.model_type = "mystery"
    with pytest.raises(UnsupportedModelError, match="known towers: clip_vision_model, dinov2"):
        attach(model, FlowCut(target_num=9))


@pytest.mark.parametrize("model", [None, object(), "llava-hf/llava-1.5-7b-hf", nn.Linear])
def test_what_is_no_model_is_named_with_what_is_allowed(model: Any) -> None:
    kind = type(model).__name__
    told = rf"got .{{1,60}} of type {kind}\. Load one first.*Supported: LlavaForConditionalGeneration"
    for act in (
        lambda: flowcut(model, target_num=4),
        lambda: attach(model, FlowCut(target_num=4)),
        lambda: detach(model),
    ):
        with pytest.raises(UnsupportedModelError, match=told):
            act()


def test_two_models_in_one_module_are_both_named_and_neither_is_touched() -> None:
    pair = nn.ModuleDict({"student": tiny.tiny_model(), "teacher": tiny.tiny_model().model})
    before = fingerprint(pair)
    with pytest.raises(
        UnsupportedModelError, match=r"2 supported.*LlavaModel at student\.model, LlavaModel at teacher"
    ):
        attach(pair, FlowCut(target_num=9))
    assert fingerprint(pair) == before
    with attach(pair["student"], FlowCut(target_num=9)), attach(pair["teacher"], FlowCut(target_num=5)):
        assert fingerprint(pair) != before
    assert fingerprint(pair) == before


def test_a_model_that_is_held_twice_is_one_model() -> None:
    model = tiny.tiny_model()
    pair = nn.ModuleDict({"student": model, "teacher": model})
    with attach(pair, FlowCut(target_num=9)) as handle, torch.no_grad():
        model(**given())
    assert len(handle.trace.images[0].kept) == 9


@dataclass(frozen=True)
class ByCls(FlowCut):
    """A method that cannot do without CLS."""

    name: ClassVar[str] = "by_cls"
    requires_cls: ClassVar[bool] = True


def test_a_method_that_needs_cls() -> None:
    attach(tiny.tiny_model("clip"), ByCls(target_num=9))
    with pytest.raises(UnsupportedModelError, match="by_cls ranks patches by the CLS token"):
        attach(tiny.tiny_model("siglip"), ByCls(target_num=9))


def test_feature_choices_that_leave_no_room() -> None:
    with pytest.raises(UnsupportedModelError, match="at least 2"):
        attach(tiny.tiny_model(vision_feature_layer=1), FlowCut(target_num=9))
    with pytest.raises(UnsupportedModelError, match="no CLS token"):
        attach(tiny.tiny_model("siglip", vision_feature_select_strategy="default"), FlowCut(target_num=9))
    with pytest.raises(ValueError, match="leaves no patch"):
        attach(tiny.tiny_model(vision_feature_select_strategy="full"), FlowCut(target_num=1))


def test_attention_that_cannot_be_observed() -> None:
    model = tiny.tiny_model()
    working = attach(model, FlowCut(target_num=9))
    model.model.vision_tower.config._attn_implementation = "paged|eager"
    with pytest.raises(UnsupportedModelError, match=r"one of: eager, .*sdpa"):
        attach(model, FlowCut(target_num=5))
    assert working.attached and "flowcut_paged|eager" not in ALL_ATTENTION_FUNCTIONS


@torch.no_grad()
def test_a_replaced_attention_is_not_a_silent_no_op() -> None:
    model = tiny.tiny_model()
    attach(model, FlowCut(target_num=9))
    attention = model.model.vision_tower.encoder.layers[3].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(NotAppliedError, match="Vision layer 3 ran without its attention being seen"):
        model(**given())


@torch.no_grad()
def test_a_replaced_encoder_is_not_a_silent_no_op() -> None:
    class Skipping(nn.Module):
        def __init__(self, layers: nn.ModuleList) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, inputs_embeds: torch.Tensor, **kwargs: Any) -> Any:
            return type("Output", (), {"last_hidden_state": inputs_embeds})()

    model = tiny.tiny_model()
    attach(model, FlowCut(target_num=9))
    model.model.vision_tower.encoder = Skipping(model.model.vision_tower.encoder.layers)
    with pytest.raises(NotAppliedError, match="0 of 7 layers passed through the method"):
        model(**given())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@torch.no_grad()
def test_non_finite_activations_name_the_layer(poison: float) -> None:
    model = tiny.tiny_model()
    attach(model, FlowCut(target_num=9))
    expected = model(**given()).logits
    layer = model.model.vision_tower.encoder.layers[2]
    before = layer.self_attn.v_proj.bias[0].clone()
    layer.self_attn.v_proj.bias[0] = poison
    with pytest.raises(NonFiniteError, match="Vision layer 2 produced NaN or infinite"):
        model(**given())
    layer.self_attn.v_proj.bias[0] = before
    assert torch.equal(model(**given()).logits, expected)
