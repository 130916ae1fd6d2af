"""LLaVA-NeXT-Video: pictures as in LLaVA-NeXT (``test_every_class.py``); frames of a video are pooled."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_classes
import torch

from flowcut import DivPrune, FlowCut, Method, UnsupportedModelError, VisionZip, attach

pytestmark = pytest.mark.skipif(not tiny_classes.installed("llava_next_video"), reason="needs a newer transformers")

FRAMES, TOKENS = 2, 9
BUDGET = 4


def sample(seed: int, words: int) -> dict[str, Any]:
    """A prompt with one video."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 120, (words,), generator=generator).tolist()
    pixels = tiny_classes.pictures(FRAMES, tiny_classes.SIZE, tiny_classes.SIZE, seed)[None]
    return {"input_ids": [1, *[tiny_classes.VIDEO] * (FRAMES * TOKENS), *text], "pixel_values_videos": pixels}


@pytest.mark.parametrize("method", [FlowCut, DivPrune])
@torch.no_grad()
def test_a_batch_of_videos_equals_single_runs(method: type[Method]) -> None:
    model = tiny_classes.tiny_model("llava_next_video")
    samples = [sample(1, 4), sample(2, 7)]
    uncut = model(**tiny_classes.together(model, samples)).logits
    with attach(model, method(retain_ratio=1.0)):
        assert torch.equal(model(**tiny_classes.together(model, samples)).logits, uncut)
    with attach(model, method(target_num=BUDGET, outputs="kept")) as handle:
        singles = []
        for one in samples:
            singles.append(model(**tiny_classes.together(model, [one])).logits[0])
            (video,) = handle.trace.images
            assert (video.grid, video.visual_tokens) == ((FRAMES, 3, 3), BUDGET)
        together = model(**tiny_classes.together(model, samples)).logits
        sequence = handle.trace.sequence
        assert sequence is not None and sequence.visual_tokens == (BUDGET, BUDGET)
        mask = sequence.attention_mask.bool()
    for row, single in enumerate(singles):
        torch.testing.assert_close(together[row][mask[row]], single, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_method_that_can_only_cut_patches_says_so() -> None:
    model = tiny_classes.tiny_model("llava_next_video")
    inputs = tiny.batch([sample(1, 4)["input_ids"]])
    with (
        attach(model, VisionZip(dominant=3, contextual=1)),
        pytest.raises(UnsupportedModelError, match="pools the frames"),
    ):
        model(**inputs, pixel_values_videos=sample(1, 4)["pixel_values_videos"])


@torch.no_grad()
def test_videos_of_a_class_that_is_known_by_its_contract_alone_are_refused() -> None:
    model = tiny_classes.tiny_model("glm4v")
    clip = tiny_classes.pictures_for(model, "glm4v", 1, 0)
    video = {"pixel_values_videos": clip["pixel_values"], "video_grid_thw": clip["image_grid_thw"]}
    inputs = tiny.batch([[1, *[tiny_classes.VIDEO] * 6, 5, 6]])
    with attach(model, DivPrune(target_num=3)), pytest.raises(UnsupportedModelError, match="video input"):
        model(**inputs, **video)
