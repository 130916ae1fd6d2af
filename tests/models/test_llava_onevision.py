"""LLaVA-OneVision: a tower without CLS, images of different sizes and tiles, videos pooled behind the tower."""

from __future__ import annotations

from typing import Any

import families
import pytest
import tiny
import torch
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, SiglipVisionConfig

from flowcut import DivPrune, FastV, FlowCut, UnsupportedModelError, VisionZip, attach

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


WIDE, SQUARE, TALL, HUGE = (40, 160), (168, 168), (160, 80), (330, 330)


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


def test_gradient_checkpointing(samples: list[families.Sample]) -> None:
    families.check_checkpointing(tiny_model(), families.collate(samples), FlowCut(target_num=20))


@torch.no_grad()
def test_tiles_share_the_budget_and_images_beside_others_have_one_tile(samples: list[families.Sample]) -> None:
    model = tiny_model()
    with attach(model, FlowCut(target_num=22)) as handle:
        model(**families.collate(samples))
        images = handle.trace.images
    assert [image.grid for image in images] == [(3, 6, 6), (1, 6, 6), (1, 6, 6), (5, 6, 6)]
    assert [[len(tile.kept) for tile in image.tiles] for image in images] == [[8, 7, 7], [22], [22], [5, 5, 4, 4, 4]]
    assert [image.visual_tokens for image in images] == [22] * 4
    # The wide image leaves a border of its tiles empty, and nothing is kept there.
    assert bool(torch.isin(images[0].kept, images[0].layout.tokens).all())


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
def importance_by_hand(model: Any, run: Any, rows: int, side: int) -> Tensor:
    """FlowCut's importance of every patch, ``[rows, patches]``, when nothing is cut; ``run`` calls the uncut model."""
    patches = side * side
    total: list[Tensor] = []

    def score(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        query, key, value = (
            projection(hidden).reshape(rows, patches, 4, 8).transpose(1, 2)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        relation = torch.softmax(query.mean(2, keepdim=True) @ key.mT / 8**0.5, dim=-1).mean(1)[:, 0]
        semantic = torch.softmax(value.mean(2, keepdim=True) @ value.mT, dim=-1).mean(1)[:, 0]
        current = (relation + semantic) * value.mean(1).abs().sum(-1)
        total.append(0.5 * total[-1] + 0.5 * current if total else current)

    # The model reads the last layer's output, so the last cut would follow the layer before it.
    layers = model.model.vision_tower.encoder.layers[:-1]
    hooks = [layer.self_attn.register_forward_pre_hook(score, with_kwargs=True) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return total[-1]


@pytest.mark.parametrize("image_newline", [False, True])
@torch.no_grad()
def test_tokens_of_an_image_that_the_model_scales_down(image_newline: bool) -> None:
    """The tower runs whole, and tokens are ranked by the importance of the patches they lie between."""
    model, base = tiny_model(), tiny_model().model
    inputs = {name: tensor for name, tensor in sample([HUGE], 7).items() if name != "input_ids"}
    uncut = base.get_image_features(**inputs).pooler_output[0]
    importance = importance_by_hand(model, lambda: model.model.get_image_features(**inputs), MOST_TILES, tiny.GRID)
    # The model's own packing of the importance, as if it were a feature, is that of the tokens; newlines come last.
    lowest = torch.tensor([-1.0])
    (expected,), _ = base.pack_image_features(
        [importance[..., None]], inputs["image_sizes"], image_newline=lowest, vision_aspect_ratio="anyres_max_4"
    )
    best = expected[:, 0].topk(20).indices.sort().values
    with attach(model, FlowCut(target_num=20, image_newline=image_newline)):
        output = model.model.get_image_features(**inputs)
    (trace,) = output.flowcut_images
    kept = trace.placeholder_kept.nonzero()[:, 0]
    newlines = kept[expected[kept, 0] == lowest]
    assert kept[expected[kept, 0] != lowest].tolist() == best.tolist() and bool(len(newlines)) == image_newline
    torch.testing.assert_close(output.pooler_output[0], uncut[kept])
    assert trace.grid == (MOST_TILES, 6, 6) and len(trace.kept.unique()) == 20 == len(trace.kept)
    # In the picture of 24 x 24 patches, scaled down to 12 x 12 tokens, the nearest patch is half a patch away.
    assert {int(patch) for patch in trace.kept if patch < tiny.PATCHES} == {int(t) for t in best if t < tiny.PATCHES}
    assert list(trace.kept_after_layer) == [7] and trace.tokens_after_layer == [MOST_TILES * tiny.PATCHES] * 8


def test_a_batch_with_an_image_that_the_model_scales_down(samples: list[families.Sample]) -> None:
    huge = [sample([HUGE], 5), *samples[1:3], sample([(330, 160)], 6)]
    inputs = families.collate(huge)
    families.check_batch(tiny_model(), huge, FlowCut(target_num=20))
    families.check_uncut(tiny_model(), inputs)
    families.check_detach(tiny_model(), inputs, FlowCut(target_num=20))
    families.check_loss(tiny_model(), inputs, FlowCut(target_num=20))


@torch.no_grad()
def test_other_methods_on_an_image_that_the_model_scales_down() -> None:
    model = tiny_model()
    inputs = families.collate([sample([HUGE])])
    # FastV ranks the separators of the rows as well, which are no patches.
    for method, least in ((DivPrune(target_num=20), 20), (FastV(target_num=20, layers=1), 10)):
        with attach(model, method) as handle:
            model(**inputs)
            assert handle.trace.sequence is not None
            patches = handle.trace.sequence.patches_at_the_end(0)
        assert least <= len(patches) <= 20 and len(patches.unique()) == len(patches)
        assert patches.min() >= 0 and patches.max() < MOST_TILES * tiny.PATCHES
    with attach(model, VisionZip(target_num=20)), pytest.raises(UnsupportedModelError, match="330 x 330 pixels"):
        model(**inputs)


def video(seed: int, kinds: str = "v") -> families.Sample:
    """A prompt with an image of one tile for every "i" and a video for every "v"."""
    sizes = {"i": (tiny.IMAGE_TOKEN, tiny.PATCHES + 1), "v": (families.VIDEO_TOKEN, VIDEO_TOKENS)}
    tensors: dict[str, Tensor] = {}
    if "i" in kinds:
        # Several images in a prompt have one tile each.
        tensors["pixel_values"] = tiny.pictures(kinds.count("i"), seed)[:, None]
        tensors["image_sizes"] = torch.tensor([[SIDE, SIDE]] * kinds.count("i"))
        tensors["batch_num_images"] = torch.tensor([kinds.count("i")])
    if "v" in kinds:
        tensors["pixel_values_videos"] = tiny.pictures(kinds.count("v") * FRAMES, seed + 50).unflatten(0, (-1, FRAMES))
    return {"input_ids": families.prompt([sizes[kind] for kind in kinds], seed=seed), **tensors}


VIDEOS = [video(1), video(2, "vv"), {"input_ids": families.prompt([], seed=3)}, video(4, "iiv")]


@pytest.mark.parametrize("video_budget", ["equal", "pooled"])
@pytest.mark.parametrize("budget", [{"target_num": 11}, {"retain_ratio": 0.4}])
def test_a_batch_of_videos_equals_single_runs(budget: dict[str, Any], video_budget: Any) -> None:
    families.check_batch(tiny_model(), VIDEOS, FlowCut(**budget, video_budget=video_budget))


def test_videos_pass_whole_and_leave_nothing_behind() -> None:
    inputs = families.collate(VIDEOS)
    families.check_uncut(tiny_model(), inputs)
    families.check_detach(tiny_model(), inputs, FlowCut(target_num=11))
    families.check_loss(tiny_model(), inputs, FlowCut(target_num=11))
    families.check_flops(tiny_model("eager"), families.collate(VIDEOS[:1]), FlowCut(target_num=11))


@pytest.mark.parametrize("image_newline", [False, True])
@torch.no_grad()
def test_kept_tokens_of_a_video_are_those_of_the_uncut_model(image_newline: bool) -> None:
    model = tiny_model()
    pixels = video(5)["pixel_values_videos"]
    uncut = model.model.get_video_features(pixels).pooler_output[0]
    with attach(model, FlowCut(target_num=11, image_newline=image_newline)):
        output = model.model.get_video_features(pixels)
    (trace,) = output.flowcut_images
    assert trace.grid == (FRAMES, 3, 3) and trace.patches == FRAMES * 9
    assert [int(((trace.kept // 9) == frame).sum()) for frame in range(FRAMES)] == [4, 4, 3]
    expected = uncut[torch.cat([trace.kept, torch.tensor([VIDEO_TOKENS - 1])])] if image_newline else uncut[trace.kept]
    assert torch.equal(output.pooler_output[0], expected)
    assert trace.tokens_after_layer == [FRAMES * tiny.PATCHES] * 8


@torch.no_grad()
def test_pooled_tokens_are_ranked_by_the_importance_of_their_patches() -> None:
    """Against brute force, on 7 x 7 patches, where the four squares of the interpolation overlap."""
    config = tiny_model().config
    config.vision_config.image_size = 7 * 14
    model = families.build(LlavaOnevisionForConditionalGeneration, config, ("vision_tower",))
    pixels = torch.randn(1, 2, 3, 98, 98, generator=torch.Generator().manual_seed(3))
    total = importance_by_hand(model, lambda: model.model.get_video_features(pixels), 2, 7)
    pooled = torch.nn.functional.interpolate(total.reshape(2, 1, 7, 7), size=(4, 4), mode="bilinear").flatten(1)
    expected = [frame.topk(5).indices.sort().values + 16 * number for number, frame in enumerate(pooled)]
    with attach(model, FlowCut(target_num=10)):
        (trace,) = model.model.get_video_features(pixels).flowcut_images
    assert trace.kept.tolist() == torch.cat(expected).tolist()


@torch.no_grad()
def test_methods_that_cannot_rank_pooled_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(FlowCut, "ranks_pooled", False)
    with attach(model, FlowCut(target_num=11)), pytest.raises(UnsupportedModelError, match="pools the frames"):
        model(**families.collate(VIDEOS[:1]))
