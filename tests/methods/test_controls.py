"""The controls: random patches, a regular grid, attention of one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from flowcut import ClsAttention, Downsample, Method, Random, Uniform, UnsupportedModelError, attach
from flowcut.methods.uniform import evenly, on_grid
from flowcut.stages.tower.shrinking import small_grid


@torch.no_grad()
def kept(model: Any, method: Method, pixels: torch.Tensor) -> list[list[int]]:
    """The patches that stay of every picture."""
    with attach(model, method) as handle:
        ids = torch.tensor([tiny.prompt(len(pixels))])
        model(input_ids=ids, pixel_values=pixels)
    return [image.kept.tolist() for image in handle.trace.images]


def test_random_depends_on_seed_and_picture_alone() -> None:
    model, pixels = tiny.tiny_model(), tiny.pictures(3)
    drawn = kept(model, Random(target_num=9), pixels)
    assert len({tuple(one) for one in drawn}) == 3
    assert kept(model, Random(target_num=9), pixels.flip(0)) == drawn[::-1]
    assert kept(model, Random(target_num=9, seed=1), pixels) != drawn


def test_random_is_even() -> None:
    model, pixels = tiny.tiny_model(), tiny.pictures(60)
    counts = torch.tensor(kept(model, Random(target_num=18), pixels)).flatten().bincount(minlength=36)
    # Each of 36 patches stays in 30 of 60 pictures, with a standard deviation of 3.9.
    assert counts.min() > 10 and counts.max() < 50


def test_uniform_on_the_grid() -> None:
    assert on_grid(24, 24, 64).tolist() == [row * 24 + column for row in range(1, 24, 3) for column in range(1, 24, 3)]
    assert kept(tiny.tiny_model(), Uniform(target_num=9), tiny.pictures(1)) == [[7, 9, 11, 19, 21, 23, 31, 33, 35]]


@pytest.mark.parametrize("height, width", [(1, 7), (5, 3), (6, 6), (4, 9)])
def test_uniform_keeps_exactly_as_many_as_asked(height: int, width: int) -> None:
    for chosen in range(1, height * width + 1):
        places = on_grid(height, width, chosen).tolist()
        assert places == sorted(set(places)) and len(places) == chosen and places[-1] < height * width
        assert len(set(evenly(height * width, chosen).tolist())) == chosen


@torch.no_grad()
def test_cls_attention_against_the_models_own_maps() -> None:
    model, pixels = tiny.tiny_model(attention="eager"), tiny.pictures(1)
    maps = model.model.vision_tower(pixels, output_attentions=True).attentions
    for layer in (None, 2):
        row = maps[6 if layer is None else layer][0, :, 0, 1:].mean(dim=0)
        assert kept(model, ClsAttention(target_num=9, layer=layer), pixels) == [
            row.topk(9).indices.sort().values.tolist()
        ]


def test_refusals() -> None:
    with pytest.raises(UnsupportedModelError, match="CLS"):
        attach(tiny.tiny_model("siglip"), ClsAttention(target_num=9))
    with pytest.raises(ValueError, match="0-based"):
        ClsAttention(target_num=9, layer=-1)
    with pytest.raises(ValueError, match="lies behind the last vision layer"):
        kept(tiny.tiny_model(), ClsAttention(target_num=9, layer=7), tiny.pictures(1))


@pytest.mark.parametrize(
    ("patches", "grid"), [(64, (8, 8)), (128, (11, 11)), (192, (13, 14)), (1, (1, 1)), (7, (2, 3))]
)
def test_small_grid(patches: int, grid: tuple[int, int]) -> None:
    assert small_grid(24, 24, patches) == grid


@pytest.mark.parametrize("tower", sorted(tiny.TOWERS))
@torch.no_grad()
def test_downsample_is_the_tower_on_a_smaller_picture(tower: str) -> None:
    model, pixels = tiny.tiny_model(tower), tiny.pictures(2)
    small = torch.nn.functional.interpolate(pixels, size=(42, 42), mode="bicubic", antialias=True)
    options = {} if tower.startswith("dinov2") else {"interpolate_pos_encoding": True}
    states = model.model.vision_tower(small, output_hidden_states=True, **options).hidden_states[-2]
    prefix = 0 if model.config.vision_feature_select_strategy == "full" else 1
    expected = model.model.multi_modal_projector(states[:, prefix:])
    registers = tiny.placeholders_of(model) - tiny.PATCHES
    with attach(model, Downsample(target_num=9 + registers)) as handle:
        torch.testing.assert_close(torch.stack(list(model.model.get_image_features(pixels).pooler_output)), expected)
        ids = torch.tensor([tiny.prompt(2, placeholders=tiny.placeholders_of(model))])
        model(input_ids=ids, pixel_values=pixels)
        trace = handle.trace
    assert [image.kept.tolist() for image in trace.images] == [[7, 9, 11, 19, 21, 23, 31, 33, 35]] * 2
    assert trace.sequence is not None and trace.sequence.visual_tokens == (2 * (9 + registers),)
    assert trace.images[0].tokens_into_layer[0] < 20
    assert trace.sequence.flops[0].tower < 0.4 * trace.sequence.uncut_flops[0].tower


@pytest.mark.parametrize("name", ["chelsea", "pagoda", "hopper"])
@torch.no_grad()
def test_downsample_shows_the_tower_what_the_models_processor_makes_of_the_picture_at_that_size(name: str) -> None:
    """To half a step of 8 bits on average, for a picture of the model's size; others are cropped to it first."""
    side = tiny.SHAPE["image_size"]
    picture = Image.open(Path(__file__).parents[2] / "examples" / "pictures" / f"{name}.jpg").convert("RGB")
    full, wanted = (
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})(
            picture.resize((side, side)), return_tensors="pt"
        ).pixel_values
        for size in (side, side // 2)
    )
    model, seen = tiny.tiny_model("dinov2"), []
    model.model.vision_tower.embeddings.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    kept(model, Downsample(target_num=9), full)
    assert seen[0].shape == wanted.shape
    assert (seen[0] - wanted).abs().mean() < 0.5 / 255 / min(CLIPImageProcessor().image_std)
