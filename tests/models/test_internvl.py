"""InternVL3: groups of two by two patches are cut whole; every tile is an image of its own."""

from __future__ import annotations

from typing import Any

import families
import pytest
import tiny
import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

from flowcut import FlowCut, attach

TOKENS = tiny.PATCHES // 4


def tiny_model(attention: str = "sdpa", **overrides: Any) -> Any:
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            **{**tiny.SHAPE, "image_size": [84, 84], "patch_size": [14, 14], **overrides}, intermediate_size=64
        ),
        text_config=families.text_config(),
        image_token_id=tiny.IMAGE_TOKEN,
        image_seq_length=TOKENS,
    )
    return families.build(InternVLForConditionalGeneration, config, ("vision_tower",), attention)


def sample(tiles: int, seed: int = 0) -> families.Sample:
    prompt = families.prompt([(tiny.IMAGE_TOKEN, TOKENS)] * tiles, seed=seed)
    return {"input_ids": prompt, **({"pixel_values": tiny.pictures(tiles, seed)} if tiles else {})}


SAMPLES = [sample(1, 1), sample(3, 2), sample(0, 3), sample(2, 4)]


@pytest.mark.parametrize("budget", [{"target_num": 4}, {"target_num": 1}, {"retain_ratio": 0.6}])
def test_a_batch_equals_single_runs(budget: dict[str, Any]) -> None:
    families.check_batch(tiny_model(), SAMPLES, FlowCut(**budget))


def test_a_budget_for_everything_is_exactly_the_uncut_model() -> None:
    with pytest.warns(UserWarning, match="covers all 9 visual tokens"):
        families.check_uncut(tiny_model(), families.collate(SAMPLES))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_detach_leaves_nothing_behind(attention: str) -> None:
    families.check_detach(tiny_model(attention), families.collate(SAMPLES), FlowCut(target_num=4))


def test_flops_against_torch() -> None:
    families.check_flops(tiny_model("eager"), families.collate([sample(2)]), FlowCut(target_num=4))


def test_loss_with_labels() -> None:
    families.check_loss(tiny_model(), families.collate(SAMPLES), FlowCut(target_num=4))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = tiny_model()
    if reentrant:
        # Reentrant checkpoints only propagate where an input requires gradients.
        model.model.vision_tower.embeddings.register_forward_hook(lambda module, args, out: out.requires_grad_())
    families.check_checkpointing(model, families.collate(SAMPLES), FlowCut(target_num=4), reentrant)


@torch.no_grad()
def test_the_tower_counts_patches_and_the_trace_groups() -> None:
    model = tiny_model()
    with attach(model, FlowCut(target_num=4)) as handle:
        model(**families.collate([sample(2)]))
        trace = handle.trace.images[0]
    assert (trace.grid, trace.visual_tokens, len(trace.kept)) == ((3, 3), 4, 4)
    tile = trace.tiles[0]
    assert tile.tokens_into_layer[0] == 1 + tiny.PATCHES and tile.tokens_after_layer[-1] == 1 + 4 * 4
    assert all((tokens - 1) % 4 == 0 for tokens in tile.tokens_after_layer)


@torch.no_grad()
def test_kept_tokens_are_those_of_the_kept_groups() -> None:
    """With a single cut, all layers before it are the uncut model's: the features differ by one layer's mixing."""
    model = tiny_model()
    pixels = tiny.pictures(2)
    with attach(model, FlowCut(target_num=5, cut_every=100)):
        output = model.model.get_image_features(pixels)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    states = tower(pixels, output_hidden_states=True).hidden_states[7]
    for state, trace, features in zip(states, output.flowcut_images, output.pooler_output, strict=True):
        patches = patches_of_groups(trace.kept)
        rows = torch.cat([torch.tensor([0]), patches.flatten() + 1])
        mixed = tower.layernorm(tower.encoder.layer[7](state[None, rows]))[0, 1:]
        # The uncut model's pixel shuffle of a picture that has the kept patches in their places.
        picture = torch.zeros(tiny.PATCHES, 32).index_copy(0, patches.flatten(), mixed)
        shuffled = model.model.pixel_shuffle(picture.reshape(1, 6, 6, 32), 0.5).reshape(9, -1)
        torch.testing.assert_close(features, projector(shuffled[trace.kept]), rtol=1e-5, atol=1e-5)


def patches_of_groups(groups: Tensor) -> Tensor:
    """The patches of every group of two by two, ``[groups, 4]``, for a picture of six by six."""
    corner = groups // 3 * 2 * tiny.GRID + groups % 3 * 2
    return corner[:, None] + torch.tensor([0, 1, tiny.GRID, tiny.GRID + 1])


@torch.no_grad()
def test_placeholders_must_match_the_tiles() -> None:
    model = tiny_model()
    inputs = families.collate([sample(2)])
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with attach(model, FlowCut(target_num=4)), pytest.raises(ValueError, match="18 image placeholders"):
        model(**inputs)
