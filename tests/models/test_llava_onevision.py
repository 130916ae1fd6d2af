"""LLaVA-OneVision: a tower without CLS, images of different sizes and tiles, videos refused unless whole."""

from __future__ import annotations

from typing import Any

import families
import pytest
import tiny
import torch
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig

from flowcut import FlowCut, UnsupportedModelError, attach

SIDE = 14 * tiny.GRID
PINPOINTS = [[SIDE * rows, SIDE * columns] for rows in (1, 2, 4) for columns in (1, 2, 4)]
MOST_TILES = 17
FRAMES = 3
VIDEO_TOKENS = FRAMES * 9 + 1


def tiny_model(attention: str = "sdpa") -> Any:
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**tiny.SHAPE, intermediate_size=64, vision_use_head=False),
        text_config=families.text_config(),
        image_token_index=tiny.IMAGE_TOKEN,
        video_token_index=families.VIDEO_TOKEN,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_4",
    )
    return families.build(LlavaOnevisionForConditionalGeneration, config, ("vision_tower",), attention)


def tokens_of(model: Any, inputs: dict[str, Tensor]) -> list[int]:
    """Visual tokens of every image in the uncut model."""
    with torch.no_grad():
        return [len(features) for features in model.model.get_image_features(**inputs).pooler_output]


def sample(sizes: list[tuple[int, int]], seed: int = 0) -> families.Sample:
    """A prompt with one image of every (height, width); the tiles are padded to the most any image has."""
    if not sizes:
        return {"input_ids": families.prompt([], seed=seed)}
    tiles = tiny.pictures(len(sizes) * MOST_TILES, seed).unflatten(0, (len(sizes), MOST_TILES))
    tensors = {
        "pixel_values": tiles,
        "image_sizes": torch.tensor(sizes),
        "batch_num_images": torch.tensor([len(sizes)]),
    }
    counts = tokens_of(tiny_model(), tensors)
    return {"input_ids": families.prompt([(tiny.IMAGE_TOKEN, count) for count in counts], seed=seed), **tensors}


WIDE, SQUARE, TALL, HUGE = (70, 160), (168, 168), (160, 80), (330, 330)


@pytest.fixture(scope="module")
def samples() -> list[families.Sample]:
    return [sample([WIDE], 1), sample([SQUARE, TALL], 2), sample([], 3), sample([SQUARE], 4)]


@pytest.mark.parametrize("image_newline", [False, True])
@pytest.mark.parametrize("budget", [{"target_num": 22}, {"retain_ratio": 0.3}])
def test_a_batch_equals_single_runs(
    samples: list[families.Sample], budget: dict[str, Any], image_newline: bool
) -> None:
    families.check_batch(tiny_model(), samples, FlowCut(**budget, image_newline=image_newline))


def test_a_budget_for_everything_is_exactly_the_uncut_model(samples: list[families.Sample]) -> None:
    families.check_uncut(tiny_model(), families.collate(samples))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_detach_leaves_nothing_behind(samples: list[families.Sample], attention: str) -> None:
    families.check_detach(tiny_model(attention), families.collate(samples), FlowCut(target_num=20))


def test_flops_against_torch() -> None:
    families.check_flops(tiny_model("eager"), families.collate([sample([SQUARE])]), FlowCut(target_num=20))


def test_loss_with_labels(samples: list[families.Sample]) -> None:
    families.check_loss(tiny_model(), families.collate(samples), FlowCut(target_num=20))


@torch.no_grad()
def test_tiles_share_the_budget_and_images_beside_others_have_one_tile(samples: list[families.Sample]) -> None:
    model = tiny_model()
    with attach(model, FlowCut(target_num=22)) as handle:
        model(**families.collate(samples))
        images = handle.trace.images
    assert [image.grid for image in images] == [(3, 6, 6), (1, 6, 6), (1, 6, 6), (5, 6, 6)]
    assert [[len(tile.kept) for tile in image.tiles] for image in images] == [[8, 7, 7], [22], [22], [5, 5, 4, 4, 4]]
    assert images[3].visual_tokens == 22
    # The wide image leaves a border of its tiles empty, and what is kept there goes.
    assert images[0].visual_tokens == int((images[0].layout.tokens[:, None] == images[0].kept).sum())


@torch.no_grad()
def test_kept_tokens_are_those_of_the_kept_patches(samples: list[families.Sample]) -> None:
    """With a single cut, all layers before it are the uncut model's: the features differ by one layer's mixing."""
    model = tiny_model()
    inputs = {name: tensor for name, tensor in samples[3].items() if name != "input_ids"}
    tiles = inputs["pixel_values"][0, :5]
    with attach(model, FlowCut(target_num=20, cut_every=100)):
        output = model.model.get_image_features(**inputs)
    trace = output.flowcut_images[0]
    tower = model.model.vision_tower
    states = tower(tiles, output_hidden_states=True).hidden_states[7]
    rows = []
    for state, tile in zip(states, trace.tiles, strict=True):
        mixed = tower.encoder.layers[7](state[None, tile.kept], None)
        rows.append(model.model.multi_modal_projector(mixed)[0])
    # Tokens of a square of two by two tiles run through the rows of the whole picture.
    first = torch.cat(rows)[torch.argsort(raster(trace.kept))]
    torch.testing.assert_close(output.pooler_output[0], first, rtol=1e-5, atol=1e-5)


def raster(kept: Tensor) -> Tensor:
    """Place of each patch in the prompt of a picture of two by two tiles behind its overview."""
    tile, row, column = kept // 36, kept % 36 // 6, kept % 6
    place = 36 + ((tile - 1) // 2 * 6 + row) * 12 + (tile - 1) % 2 * 6 + column
    return torch.where(tile == 0, kept, place)


@torch.no_grad()
def test_an_image_that_the_model_scales_down_is_refused() -> None:
    model = tiny_model()
    inputs = families.collate([sample([HUGE])])
    uncut = model(**inputs).logits
    with attach(model, FlowCut(target_num=20)), pytest.raises(UnsupportedModelError, match="330 x 330 pixels"):
        model(**inputs)
    with attach(model, FlowCut(retain_ratio=1.0)):
        assert torch.equal(model(**inputs).logits, uncut)


@torch.no_grad()
def test_videos_are_refused_unless_they_pass_whole() -> None:
    model = tiny_model()
    video = tiny.pictures(2 * FRAMES).unflatten(0, (2, FRAMES))
    prompts = [{"input_ids": families.prompt([(families.VIDEO_TOKEN, VIDEO_TOKENS)], words)} for words in (3, 5)]
    inputs = {**families.collate(prompts), "pixel_values_videos": video}
    uncut = model(**inputs).logits
    with attach(model, FlowCut(target_num=20)), pytest.raises(UnsupportedModelError, match="pools the frames"):
        model(**inputs)
    with attach(model, FlowCut(target_num=100)) as handle:
        assert torch.equal(model(**inputs).logits, uncut)
        assert [image.visual_tokens for image in handle.trace.images] == [VIDEO_TOKENS] * 2
