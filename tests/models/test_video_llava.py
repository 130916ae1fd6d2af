"""Video-LLaVA: two towers, images and videos in one batch, a budget shared over frames."""

from __future__ import annotations

from typing import Any

import families
import pytest
import tiny
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import CLIPVisionConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration
from transformers.masking_utils import create_bidirectional_mask

from flowcut import FlowCut, attach

FRAMES = 4
VIDEO_TOKENS = FRAMES * (tiny.PATCHES + 1)
PIXELS = "pixel_values" if Version(transformers.__version__) >= Version("5.23") else "pixel_values_images"


def tiny_model(attention: str = "sdpa", **overrides: Any) -> Any:
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**{**tiny.SHAPE, **overrides}, intermediate_size=64),
        text_config=families.text_config(),
        image_token_index=tiny.IMAGE_TOKEN,
        video_token_index=families.VIDEO_TOKEN,
    )
    return families.build(VideoLlavaForConditionalGeneration, config, ("image_tower", "video_tower"), attention)


def sample(kinds: str, seed: int = 0) -> families.Sample:
    """A prompt with an image for every "i" and a video for every "v" in ``kinds``."""
    sizes = {"i": (tiny.IMAGE_TOKEN, tiny.PATCHES), "v": (families.VIDEO_TOKEN, VIDEO_TOKENS)}
    tensors: dict[str, Tensor] = {}
    if "i" in kinds:
        tensors[PIXELS] = tiny.pictures(kinds.count("i"), seed)
    if "v" in kinds:
        videos = tiny.pictures(kinds.count("v") * FRAMES, seed + 50)
        tensors["pixel_values_videos"] = videos.unflatten(0, (-1, FRAMES))
    return {"input_ids": families.prompt([sizes[kind] for kind in kinds], seed=seed), **tensors}


SAMPLES = [sample("v", 1), sample("ivi", 2), sample("", 3), sample("vi", 4)]


@pytest.mark.parametrize("video_budget", ["equal", "pooled"])
@pytest.mark.parametrize("budget", [{"target_num": 22}, {"retain_ratio": 0.3}])
def test_a_batch_equals_single_runs(budget: dict[str, Any], video_budget: Any) -> None:
    families.check_batch(tiny_model(), SAMPLES, FlowCut(**budget, video_budget=video_budget))


def test_a_budget_for_everything_is_exactly_the_uncut_model() -> None:
    families.check_uncut(tiny_model(), families.collate(SAMPLES))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_detach_leaves_nothing_behind(attention: str) -> None:
    families.check_detach(tiny_model(attention), families.collate(SAMPLES), FlowCut(target_num=20))


def test_flops_against_torch() -> None:
    families.check_flops(tiny_model("eager"), families.collate([sample("iv")]), FlowCut(target_num=20))


def test_loss_with_labels() -> None:
    families.check_loss(tiny_model(), families.collate(SAMPLES), FlowCut(target_num=20))


def test_gradient_checkpointing() -> None:
    families.check_checkpointing(tiny_model(), families.collate(SAMPLES), FlowCut(target_num=20))


@torch.no_grad()
def test_frames_share_the_budget() -> None:
    model = tiny_model()
    inputs = families.collate([sample("v", 7)])
    # 22 tokens: the CLS tokens of four frames, and 18 patches.
    with attach(model, FlowCut(target_num=22, outputs="kept")) as handle:
        logits = model(**inputs).logits
        equal = handle.trace.images[0]
    assert logits.shape[1] == inputs["input_ids"].shape[1] - VIDEO_TOKENS + 22
    assert equal.grid == (FRAMES, tiny.GRID, tiny.GRID)
    assert [len(frame.kept) for frame in equal.tiles] == [5, 5, 4, 4]
    assert (equal.visual_tokens, len(equal.kept)) == (22, 18)
    frames = torch.cat([frame.kept + number * tiny.PATCHES for number, frame in enumerate(equal.tiles)])
    assert torch.equal(equal.kept, frames) and torch.equal(equal.kept, equal.kept.sort().values)


@torch.no_grad()
def test_pooled_frames_compete_in_the_last_cut() -> None:
    model = tiny_model()
    inputs = families.collate([sample("v", 7), sample("v", 8)])
    counts = {}
    for budget in ("equal", "pooled"):
        # With a single cut nothing is decided before the frames compete.
        with attach(model, FlowCut(target_num=22, cut_every=100, video_budget=budget, outputs="kept")) as handle:
            logits = model(**inputs).logits
            counts[budget] = [[len(frame.kept) for frame in video.tiles] for video in handle.trace.images]
        assert logits.shape[1] == inputs["input_ids"].shape[1] - VIDEO_TOKENS + 22
        assert [sum(video) for video in counts[budget]] == [18, 18]
    assert counts["equal"] == [[5, 5, 4, 4]] * 2
    assert counts["pooled"] != counts["equal"] and min(min(video) for video in counts["pooled"]) >= 1


@torch.no_grad()
def test_a_video_of_the_papers_size() -> None:
    """8 frames of 256 patches and a CLS token each; of 2048 patches 256 tokens are left in all."""
    model = tiny_model(image_size=224)
    video = torch.randn(1, 8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert model.model.get_video_features(video).pooler_output.flatten(0, 1).shape == (8 * 257, 32)
    with attach(model, FlowCut(target_num=256)):
        output = model.model.get_video_features(video)
    assert output.pooler_output.shape == (1, 256, 32)
    (trace,) = output.flowcut_images
    assert trace.grid == (8, 16, 16) and [len(frame.kept) for frame in trace.tiles] == [31] * 8


@torch.no_grad()
def test_features_of_a_video_are_those_of_its_frames_alone() -> None:
    """Frames do not see each other in the tower: a video equals its frames, each with its share."""
    model = tiny_model()
    video = sample("v", 5)["pixel_values_videos"]
    with attach(model, FlowCut(target_num=4 * 9)):
        whole = model.model.get_video_features(video).pooler_output
    with attach(model, FlowCut(target_num=9)):
        alone = [model.model.get_video_features(video[:, [frame]]).pooler_output[0] for frame in range(FRAMES)]
    torch.testing.assert_close(whole[0], torch.cat(alone), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_budgets_that_cannot_be_shared_are_refused() -> None:
    model = tiny_model()
    with attach(model, FlowCut(target_num=7)), pytest.raises(ValueError, match="no patch for some frames"):
        model(**families.collate([sample("v")]))
    with pytest.raises(ValueError, match="video_budget"):
        FlowCut(target_num=7, video_budget="best")  # type: ignore[arg-type]


@torch.no_grad()
def test_placeholders_must_match_the_videos() -> None:
    model = tiny_model()
    inputs = families.collate([sample("v"), sample("v", 1)])
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][:1]
    with attach(model, FlowCut(target_num=20)), pytest.raises(ValueError, match="video placeholders"):
        model(**inputs)


@torch.no_grad()
def test_with_a_fixed_schedule_no_frame_is_padded_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[int] = []

    def counted(**given: Any) -> Any:
        masks.append(given["inputs_embeds"].shape[1])
        return create_bidirectional_mask(**given)

    monkeypatch.setattr("flowcut.stages.tower.batched_pass.create_bidirectional_mask", counted)
    model, inputs = tiny_model(), families.collate([sample("v", 1)])
    # 24 tokens are CLS and 5 patches of each of 4 frames.
    for method, padded in ((FlowCut(target_num=24), True), (FlowCut(target_num=24, schedule=(12, 10, 9)), False)):
        masks.clear()
        with attach(model, method) as handle:
            model(**inputs)
            tiles = handle.trace.images[0].tiles
        assert bool(masks) is padded
        assert [len(tile.kept) for tile in tiles] == [5] * FRAMES
    assert {tuple(tile.tokens_after_layer) for tile in tiles} == {(37, 25, 25, 15, 15, 6, 6, 6)}
