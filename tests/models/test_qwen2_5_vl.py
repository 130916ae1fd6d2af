"""What is Qwen2.5-VL's own: windows. The rest is in ``test_qwen2_vl.py``, for both."""

from __future__ import annotations

import pytest
import tiny_qwen
import torch
from tiny_qwen import batch, sample
from transformers.vision_utils import get_vision_window_index

from flowcut import FlowCut, attach


@pytest.mark.parametrize("method", [FlowCut(target_num=6), FlowCut.as_released(6)], ids=["groups", "patches"])
@torch.no_grad()
def test_kept_groups_stay_in_the_windows_of_the_uncut_image(method: FlowCut) -> None:
    model = tiny_qwen.tiny_model("qwen2_5_vl")
    inputs = batch([sample([(1, 12, 18), (1, 10, 20)], [], 3, seed=21)])
    grids = inputs["image_grid_thw"]
    order, bounds = get_vision_window_index(grids, spatial_merge_size=2, window_size=112, patch_size=14)
    window = torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff())
    whole_image = torch.tensor([0, 216, 416])
    seen: list[torch.Tensor] = []
    for block in model.model.visual.blocks:
        block.attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["cu_seqlens"]), with_kwargs=True
        )
    with attach(model, method) as handle:
        model(**inputs)
        images = handle.trace.images
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    for layer, given in enumerate(seen):
        alive = []
        for image, start in zip(images, (0, 54), strict=True):
            before = [index for after, index in sorted(image.kept_after_layer.items()) if after < layer]
            size = image.tiles[0].unit
            kept = before[-1] if before else torch.arange(image.patches)
            patches = (kept[:, None] * size + torch.arange(size)).flatten() + 4 * start
            alive.append(place[patches // 4] * 4 + patches % 4)
        places = torch.cat(alive).sort().values
        segments = torch.bucketize(places, whole_image, right=True) if layer in (2, 5) else window[places]
        lengths = segments.unique_consecutive(return_counts=True)[1].tolist()
        assert given.diff().tolist() == lengths
    assert any(len(image.kept_after_layer) > 1 for image in images)


@torch.no_grad()
def test_features_come_in_the_order_of_the_picture() -> None:
    model = tiny_qwen.tiny_model("qwen2_5_vl")
    inputs = batch([sample([(1, 12, 18)], [(2, 10, 20)], 3, seed=22)])
    merged: list[torch.Tensor] = []
    model.model.visual.merger.register_forward_hook(lambda module, args, output: merged.append(output))
    for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        grid = inputs[f"{modality}_grid_thw"]
        merged.clear()
        with attach(model, FlowCut(target_num=7, decoder_layer=None)) as handle:
            encode = getattr(model, f"get_{modality}_features")
            outputs = encode(inputs[name], grid)
            model(**inputs)
        (image,) = [image for image in handle.trace.images if image.patches == int(grid.prod()) // 4]
        order, _ = get_vision_window_index(grid, spatial_merge_size=2, window_size=112, patch_size=14)
        in_windows = [group for group in order.tolist() if group in image.kept.tolist()]
        position = [in_windows.index(group) for group in image.kept.tolist()]
        assert torch.equal(outputs.pooler_output[0], merged[0][position])
