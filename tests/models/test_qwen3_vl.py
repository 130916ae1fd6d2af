"""What is Qwen3-VL's own: features from the middle of the tower (DeepStack). The rest is in ``test_qwen2_vl.py``."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_qwen
import torch
from tiny_qwen import batch, four
from torch import Tensor

from flowcut import FlowCut, UnsupportedModelError, attach

MODALITIES = (("image", "pixel_values"), ("video", "pixel_values_videos"))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_qwen.tiny_model("qwen3_vl")


@pytest.mark.parametrize(("modality", "pixels"), MODALITIES)
@torch.no_grad()
def test_with_a_single_last_cut_all_features_are_those_of_the_uncut_model(
    model: Any, modality: str, pixels: str
) -> None:
    inputs = batch(four(model))
    encode = getattr(model, f"get_{modality}_features")
    uncut = encode(inputs[pixels], inputs[f"{modality}_grid_thw"])
    with attach(model, FlowCut(target_num=6, decoder_layer=None, cut_every=100)):
        cut = encode(inputs[pixels], inputs[f"{modality}_grid_thw"])
    levels = zip(
        [uncut.pooler_output, *uncut.deepstack_features], [cut.pooler_output, *cut.deepstack_features], strict=True
    )
    for expected, features in levels:
        for trace, before, after in zip(cut.flowcut_images, expected, features, strict=True):
            assert len(trace.kept) == 6 < len(before)
            torch.testing.assert_close(after, before[trace.kept], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_intermediate_features_are_cut_with_the_final_indices(model: Any) -> None:
    inputs = batch(four(model))
    pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"]
    visual = model.model.visual
    states: list[Tensor] = []
    merged: list[int] = []
    with attach(model, FlowCut(target_num=6, decoder_layer=None)):
        hooks = [block.register_forward_hook(lambda m, args, output: states.append(output)) for block in visual.blocks]
        hooks += [
            merger.register_forward_hook(lambda m, args, output: merged.append(len(output)))
            for merger in visual.deepstack_merger_list
        ]
        output = model.get_image_features(pixels, grids)
        for hook in hooks:
            hook.remove()
    traces = output.flowcut_images
    # The mergers have nothing to do in the middle of the tower, and work on what stays at its end.
    assert merged == [0, 0, 0, *[6 * len(traces)] * 3]
    for level, layer in enumerate((0, 2, 4)):
        everything = visual.deepstack_merger_list[level](states[layer])
        start = 0
        for trace, features in zip(traces, output.deepstack_features[level], strict=True):
            alive = next(
                (kept for after, kept in sorted(trace.kept_after_layer.items(), reverse=True) if after <= layer),
                torch.arange(trace.patches),
            )
            assert set(trace.kept.tolist()) <= set(alive.tolist())
            of_image = everything[start : start + len(alive)]
            torch.testing.assert_close(features, of_image[torch.isin(alive, trace.kept)], rtol=1e-5, atol=1e-5)
            start += len(alive)
        assert start == len(everything)
    assert any(len(trace.kept_after_layer) > 2 for trace in traces)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_features_meet_their_tokens_behind_the_second_cut(model: Any, side: str) -> None:
    """What enters a decoder layer is what the layer before handed on, plus its level's features."""
    inputs = batch(four(model), side)
    layers = model.model.language_model.layers
    entered: list[Tensor] = []
    left: list[Tensor] = []
    with attach(model, FlowCut(target_num=5)) as handle:
        hooks = [
            layer.register_forward_pre_hook(lambda m, args, kwargs: entered.append(args[0]), with_kwargs=True)
            for layer in layers
        ]
        hooks += [layer.register_forward_hook(lambda m, args, output: left.append(output)) for layer in layers]
        model(**inputs)
        for hook in hooks:
            hook.remove()
        encoded = {
            name: getattr(model, f"get_{name}_features")(inputs[pixels], inputs[f"{name}_grid_thw"])
            for name, pixels in MODALITIES
        }
        sequence = handle.trace.sequence
    assert sequence is not None
    first, last = sequence.stretches
    for level in range(3):
        stretch = first if level == 0 else last
        assert left[level].shape[1] == stretch.cut.index.shape[1]
        added = torch.zeros_like(left[level])
        for modality, output in encoded.items():
            token = tiny_qwen.IMAGE if modality == "image" else tiny_qwen.VIDEO
            features = torch.cat(list(output.deepstack_features[level]))
            placeholders = (first.cut.take(inputs["input_ids"]) == token) & (first.image >= 0)
            uncut_columns = first.cut.columns()[placeholders]
            rows = placeholders.nonzero()[:, 0]
            assert len(features) == len(rows)
            for row, column, feature in zip(rows, uncut_columns, features, strict=True):
                added[row, (stretch.cut.columns()[row] == column)] = feature
        assert int((added.abs().sum(dim=-1) > 0).sum()) == int((stretch.image >= 0).sum())
        torch.testing.assert_close(entered[level + 1], left[level] + added)


@torch.no_grad()
def test_single_patches_cannot_be_cut(model: Any) -> None:
    before = set(vars(model.model))
    with pytest.raises(UnsupportedModelError, match='merge_unit="group"'):
        attach(model, FlowCut.as_released(5))
    assert set(vars(model.model)) == before
