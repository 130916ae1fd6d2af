"""The cut inside the tower: which layers run, which features come out, for every choice the model may make."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from flowcut import FlowCut, attach

TARGET = 9


def runs_of(model: Any, pixels: Tensor, **options: Any) -> tuple[list[int], list[int], Any]:
    """Tokens entering every layer that ran, tokens entering its MLP, and the output."""
    entering: list[int] = []
    entering_mlp: list[int] = []
    hooks = []
    for layer in model.model.vision_tower.encoder.layers:
        hooks.append(layer.layer_norm1.register_forward_hook(lambda module, args, out: entering.append(out.shape[1])))
        hooks.append(layer.mlp.fc1.register_forward_hook(lambda module, args, out: entering_mlp.append(out.shape[1])))
    output = model.get_image_features(pixels, **options)
    for hook in hooks:
        hook.remove()
    return entering, entering_mlp, output


@pytest.mark.parametrize("feature_layer", [-1, -2, -4, 2, 5, 8])
@pytest.mark.parametrize("per_call", [True, False])
@torch.no_grad()
def test_feature_layer_is_honoured_and_later_layers_do_not_run(feature_layer: int, per_call: bool) -> None:
    options = {"vision_feature_layer": feature_layer}
    model = tiny.tiny_model(**({} if per_call else options))
    attach(model, FlowCut(target_num=TARGET))
    entering, entering_mlp, output = runs_of(model, tiny.pictures(1), **(options if per_call else {}))
    positive = feature_layer % 9
    assert len(entering) == positive
    assert entering[0] == 37 and entering[-1] == TARGET + 1
    trace = output.flowcut_images[0]
    assert entering == trace.tokens_into_layer
    assert entering_mlp == trace.tokens_after_layer[:positive], "cut tokens must not pass through the MLP"
    assert output.pooler_output[0].shape == (TARGET, 32)


@torch.no_grad()
def test_several_feature_layers_are_cut_alike() -> None:
    model = tiny.tiny_model(vision_feature_layer=[3, -2])
    pixels = tiny.pictures(3)
    features: list[Tensor] = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    with attach(model, FlowCut(target_num=TARGET)):
        traces = model.get_image_features(pixels).flowcut_images
    assert features[0].shape == (3, TARGET, 64)
    # Hidden state 3 of a token depends on the tokens cut before it; state 1 does not.
    model = tiny.tiny_model(vision_feature_layer=[1, -2])
    model.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    with attach(model, FlowCut(target_num=TARGET)):
        traces = model.get_image_features(pixels).flowcut_images
    uncut = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[1][:, 1:]
    for image, trace in enumerate(traces):
        torch.testing.assert_close(features[1][image, :, :32], uncut[image, trace.kept])


@pytest.mark.parametrize("per_call", [True, False])
@torch.no_grad()
def test_full_strategy_keeps_cls_within_the_budget(per_call: bool) -> None:
    options = {"vision_feature_select_strategy": "full"}
    model = tiny.tiny_model(**({} if per_call else options))
    attach(model, FlowCut(target_num=TARGET, outputs="kept"))
    output = model.get_image_features(tiny.pictures(1), **(options if per_call else {}))
    assert output.pooler_output[0].shape[0] == TARGET
    assert len(output.flowcut_images[0].kept) == TARGET - 1
    inputs = tiny.batch([tiny.prompt(1, placeholders=tiny.PATCHES + 1)])
    for _ in range(2):
        logits = model(**inputs, pixel_values=tiny.pictures(1), **(options if per_call else {})).logits
        assert logits.shape[1] == inputs["input_ids"].shape[1] - tiny.PATCHES - 1 + TARGET


@torch.no_grad()
def test_retain_ratio_counts_the_visual_tokens() -> None:
    model = tiny.tiny_model()
    attach(model, FlowCut(retain_ratio=1 / 3))
    assert len(model.get_image_features(tiny.pictures(1)).pooler_output[0]) == 12


@torch.no_grad()
def test_kept_features_are_those_of_the_kept_patches() -> None:
    """With the cut in the last possible layer only, features equal the uncut ones up to the last layer's mixing."""
    model = tiny.tiny_model()
    pixels = tiny.pictures(2)
    with attach(model, FlowCut(target_num=TARGET, cut_every=100)):
        output = model.get_image_features(pixels)
    tower = model.model.vision_tower
    states = tower(pixels, output_hidden_states=True).hidden_states[6]
    for image, trace in enumerate(output.flowcut_images):
        assert list(trace.kept_after_layer) == [5]
        rows = torch.cat([torch.tensor([0]), trace.kept + 1])
        mixed = tower.encoder.layers[6](states[image : image + 1, rows], None)[:, 1:]
        expected = model.model.multi_modal_projector(mixed)[0]
        torch.testing.assert_close(output.pooler_output[image], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_eager_and_sdpa_keep_the_same_patches() -> None:
    kept = {}
    for attention in ("eager", "sdpa"):
        model = tiny.tiny_model(attention=attention)
        with attach(model, FlowCut(target_num=TARGET)):
            kept[attention] = [t.kept.tolist() for t in model.get_image_features(tiny.pictures(4)).flowcut_images]
    assert kept["eager"] == kept["sdpa"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_keeps_the_same_patches() -> None:
    kept = {}
    for attention in ("flex_attention", "sdpa"):
        model = tiny.tiny_model()
        model.model.vision_tower.set_attn_implementation(attention)
        # Without the stance, torch compiles kernels, which takes eight times as long as all the rest of this.
        with torch.compiler.set_stance("force_eager"), attach(model, FlowCut(target_num=TARGET)):
            kept[attention] = [t.kept.tolist() for t in model.get_image_features(tiny.pictures(3)).flowcut_images]
    assert kept["flex_attention"] == kept["sdpa"]


@torch.no_grad()
def test_at_most_one_host_synchronisation_per_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.tiny_model()
    handle = attach(model, FlowCut(target_num=TARGET))
    waits: list[str] = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "nonzero"):
        original = getattr(Tensor, name)

        def counting(self: Tensor, *args: Any, _name: str = name, _original: Any = original) -> Any:
            waits.append(_name)
            return _original(self, *args)

        monkeypatch.setattr(Tensor, name, counting)
    traces = model.get_image_features(tiny.pictures(1)).flowcut_images
    monkeypatch.undo()
    assert handle.attached and waits == ["tolist"] * len(traces[0].kept_after_layer)
