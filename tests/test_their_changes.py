"""What people do to models before and after attaching: it works, or it is refused by name."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_qwen
import torch
from families import fingerprint
from torch import Tensor, nn

from flowcut import DivPrune, FastV, FlowCut, Method, NotAppliedError, UnsupportedModelError, attach, detach

TARGET = 9
METHODS: dict[str, Method] = {
    "tower": FlowCut(target_num=TARGET),
    "projector": DivPrune(target_num=TARGET),
    "decoder": FastV(target_num=TARGET, layers=1),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
GREEDY: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [2, tiny.IMAGE_TOKEN]}


def inputs_of(images: int = 2) -> dict[str, Tensor]:
    """Two prompts, one with a picture more."""
    prompts = [tiny.prompt(images, 4, 1), tiny.prompt(1, 7, 2)]
    return {**tiny.batch(prompts), "pixel_values": tiny.pictures(images + 1)}


def answers(model: Any) -> tuple[Tensor, ...]:
    """Logits and generated answers, with a cache and without one."""
    with torch.no_grad():
        generated = [model.generate(**inputs_of(), **GREEDY, use_cache=use_cache) for use_cache in (True, False)]
        return model(**inputs_of()).logits, *generated


def check_both_orders(method: Method, change: Callable[[Any], Any], expected: tuple[Tensor, ...]) -> None:
    """A change in front of attaching and one behind it give the same answers."""
    for first in ("change", "attach"):
        model: Any = tiny.tiny_model()
        if first == "attach":
            attach(model, method)
        change(model)
        if first == "change":
            attach(model, method)
        for ours, theirs in zip(answers(model), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=f"{first} first")
        detach(model)


def expected_of(method: Method, model: Any = None) -> tuple[Tensor, ...]:
    """The answers of a model that nothing else was done to."""
    with attach(tiny.tiny_model() if model is None else model, method) as handle:
        return answers(handle.model)


def places(model: Any) -> list[nn.Module]:
    """Modules all over a model."""
    tower, language = model.model.vision_tower.encoder.layers, model.model.language_model.layers
    inside = [module for layers in (tower, language) for module in (layers[1], layers[1].self_attn, layers[1].mlp)]
    return [model, model.model, model.model.vision_tower, *inside, model.model.multi_modal_projector, model.lm_head]


@every_method
@torch.no_grad()
def test_hooks_of_others_run_in_front_of_ours_and_behind_and_stay(method: Method) -> None:
    model: Any = tiny.tiny_model()
    expected, calls, hooks = expected_of(method), [], []

    def lay() -> None:
        for module in places(model):
            hooks.append(module.register_forward_hook(lambda *_: calls.append(1)))
            hooks.append(module.register_forward_pre_hook(lambda *_: calls.append(1), prepend=True))

    lay()
    handle = attach(model, method)
    lay()
    for ours, theirs in zip(answers(model), expected, strict=True):
        assert torch.equal(ours, theirs)
    several = len(calls)
    handle.detach()
    calls.clear()
    model(**inputs_of())
    assert 0 < len(calls) <= 4 * len(places(model)) < several
    for hook in hooks:
        hook.remove()


@every_method
def test_a_hook_that_changes_what_a_layer_puts_out_counts_in_either_order(method: Method) -> None:
    def louder(model: Any) -> None:
        for layer in (model.model.vision_tower.encoder.layers[2], model.model.language_model.layers[1]):
            layer.register_forward_hook(lambda module, args, output: 1.25 * output)

    model: Any = tiny.tiny_model()
    with torch.no_grad():
        uncut = model(**inputs_of()).logits
        louder(model)
        assert not torch.allclose(model(**inputs_of()).logits, uncut)
    check_both_orders(method, louder, expected_of(method, model))


class Dimmed(type(tiny.tiny_model())):  # type: ignore[misc]
    """A model of somebody's own, which changes pictures and logits."""

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        return super().get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        mm_encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        kwargs["mm_encoder_outputs"] = mm_encoder_outputs
        output = super().forward(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
        output.logits = 0.5 * output.logits
        return output


class Encoding(type(tiny.tiny_model())):  # type: ignore[misc]
    """Another, to which transformers cannot hand encoded pictures."""

    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(input_ids=input_ids, pixel_values=pixel_values, **kwargs)


@torch.no_grad()
def test_a_forward_that_encodes_anew_at_every_step_is_refused_without_a_cache() -> None:
    model = Encoding(tiny.tiny_config()).eval()
    with attach(model, FastV(target_num=9, layers=1)):
        model.generate(**inputs_of(), **GREEDY)
        with pytest.raises(UnsupportedModelError, match="its forward name the argument mm_encoder_outputs"):
            model.generate(**inputs_of(), **GREEDY, use_cache=False)


@every_method
@torch.no_grad()
def test_a_subclass_with_a_forward_of_its_own(method: Method) -> None:
    model, own = tiny.tiny_model(), Dimmed(tiny.tiny_config()).eval()
    own.load_state_dict(model.state_dict())
    before, uncut = fingerprint(own), own(**inputs_of()).logits
    expected = expected_of(method)
    with attach(own, method):
        found = answers(own)
    torch.testing.assert_close(2 * found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert torch.equal(own(**inputs_of()).logits, uncut) and before.keys() == fingerprint(own).keys()


@every_method
@pytest.mark.parametrize("of", ["model", "base"])
def test_a_forward_that_was_patched_onto_the_instance(method: Method, of: str) -> None:
    def patch(model: Any) -> None:
        module = model if of == "model" else model.model
        original = module.forward

        @wraps(original)
        def patched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs)

        module.forward = types.MethodType(patched, module)

    check_both_orders(method, patch, expected_of(method))


@torch.no_grad()
def test_a_decoder_layer_patched_past_its_attention_is_no_silent_no_op() -> None:
    model: Any = tiny.tiny_model()
    with attach(model, METHODS["decoder"]):
        attention = model.model.language_model.layers[0].self_attn
        attention.forward = lambda hidden_states, **_: (hidden_states, None)
        with pytest.raises(NotAppliedError, match="Decoder layer 0 ran without its attention being seen"):
            model(**inputs_of())


class Rounded(nn.Module):
    """Stands for a quantized linear layer: integers and a scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("codes", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.codes.to(states.dtype) * self.scale.to(states.dtype), self.bias)


def round_linears(model: Any) -> Any:
    """Replace every linear layer but the head."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, Rounded(module))
    return model


@every_method
def test_linear_layers_may_be_replaced_before_and_after(method: Method) -> None:
    """An output projection of the tower replaced afterwards once ran on tokens at the places of others, unnoticed."""
    check_both_orders(method, round_linears, expected_of(method, round_linears(tiny.tiny_model())))


@torch.no_grad()
def test_linear_layers_of_a_packed_tower_may_be_replaced_while_attached() -> None:
    model: Any = tiny_qwen.tiny_model("qwen2_vl")
    inputs = tiny_qwen.batch(tiny_qwen.four(model)[:2])
    with attach(round_linears(copy.deepcopy(model)), FlowCut(target_num=TARGET)) as handle:
        expected: Any = handle.model(**inputs)  # type: ignore[operator]
    attach(model, FlowCut(target_num=TARGET))
    round_linears(model)
    torch.testing.assert_close(model(**inputs).logits, expected.logits, rtol=1e-5, atol=1e-5)


@every_method
def test_adapters_in_the_tower_may_come_before_and_after(method: Method) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    targets = r".*vision_tower.*(out_proj|fc1|q_proj)|.*language_model.*o_proj"
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)

    def inject(model: Any) -> Any:
        torch.manual_seed(3)
        inject_adapter_in_model(config, model)
        return model

    check_both_orders(method, inject, expected_of(method, inject(tiny.tiny_model())))


@every_method
@torch.no_grad()
def test_tied_weights_stay_tied(method: Method, tmp_path: Path) -> None:
    config = tiny.tiny_config(tie_word_embeddings=True)
    config.text_config.tie_word_embeddings = True
    torch.manual_seed(0)
    model: Any = tiny.concentrate(tiny.LlavaForConditionalGeneration._from_config(config).eval())
    model.tie_weights()

    def tied(one: Any) -> bool:
        return one.lm_head.weight.data_ptr() == one.get_input_embeddings().weight.data_ptr()

    assert tied(model)
    uncut = model(**inputs_of()).logits
    with attach(model, method) as handle:
        answers(model)
        model.tie_weights()
        assert tied(model) and any(not image.whole for image in handle.trace.images)
        copied: Any = copy.deepcopy(model)
        assert tied(copied) and torch.equal(copied(**inputs_of()).logits, model(**inputs_of()).logits)
    assert tied(model) and torch.equal(model(**inputs_of()).logits, uncut)


@every_method
def test_frozen_weights_and_a_trainable_projector(method: Method) -> None:
    model: Any = tiny.tiny_model().requires_grad_(False)
    labels = inputs_of()["input_ids"]
    with attach(model, method):
        assert not model(**inputs_of(), labels=labels).loss.requires_grad
        model.model.multi_modal_projector.requires_grad_(True)
        model.train()
        model(**inputs_of(), labels=labels).loss.backward()
    with_gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradients == {name for name, _ in model.named_parameters() if "multi_modal_projector" in name}


@every_method
def test_gradient_checkpointing_on_and_off_again(method: Method) -> None:
    model: Any = tiny.tiny_model().train()
    labels = inputs_of()["input_ids"]

    def gradient() -> Tensor:
        model.zero_grad(set_to_none=True)
        model(**inputs_of(), labels=labels, use_cache=False).loss.backward()
        found: Tensor = model.model.multi_modal_projector.linear_1.weight.grad.clone()
        return found

    with attach(model, method):
        expected = gradient()
        for _ in range(2):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            torch.testing.assert_close(gradient(), expected, rtol=1e-4, atol=1e-6)
            model.gradient_checkpointing_disable()
            torch.testing.assert_close(gradient(), expected, rtol=1e-4, atol=1e-6)


@every_method
@pytest.mark.parametrize("first", ["attach", "offload"])
@torch.no_grad()
def test_weights_on_disk(method: Method, first: str, tmp_path: Path) -> None:
    from accelerate import disk_offload

    model: Any = tiny.tiny_model()
    expected = expected_of(method)
    if first == "attach":
        attach(model, method)
    disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    if first == "offload":
        attach(model, method)
    for ours, theirs in zip(answers(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    detach(model)
    assert model(**inputs_of()).logits.shape[1] == inputs_of()["input_ids"].shape[1]


@every_method
@torch.no_grad()
def test_parts_that_are_compiled_in_place(method: Method) -> None:
    def compile_parts(model: Any) -> None:
        model.model.multi_modal_projector.compile(backend="eager")
        model.model.language_model.layers[0].mlp.compile(backend="eager")
        model.lm_head.compile(backend="eager")

    check_both_orders(method, compile_parts, expected_of(method))
