"""Idefics3 and SmolVLM: a connector that joins squares of patches; rows of pictures padded with empty ones."""

from __future__ import annotations

from typing import Any

import families
import pytest
import tiny
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from flowcut import CDPruner, DivPrune, FlowCut, Method, UnsupportedModelError, attach

TOKENS = tiny.PATCHES // 4
CLASSES: dict[str, tuple[Any, Any]] = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
}
MOST_TILES = 3


def tiny_model(kind: str, attention: str = "sdpa") -> Any:
    config_class, model_class = CLASSES[kind]
    config = config_class(
        vision_config={**tiny.SHAPE, "intermediate_size": 64},
        text_config=families.text_config(),
        image_token_id=tiny.IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=tiny.PAD_TOKEN,
    )
    return families.build(model_class, config, ("vision_model",), attention)


def sample(tiles: int, seed: int = 0) -> families.Sample:
    """A prompt with so many tiles."""
    prompt = families.prompt([(tiny.IMAGE_TOKEN, TOKENS)] * tiles, seed=seed)
    return {"input_ids": prompt, **({"pixel_values": tiny.pictures(tiles, seed)} if tiles else {})}


def together(samples: list[families.Sample], side: str = "left") -> dict[str, Tensor]:
    """A batch with one row of tiles for each sample, filled up with empty ones, as the processors do it."""
    inputs = tiny.batch([one["input_ids"] for one in samples], side)
    if any("pixel_values" in one for one in samples):
        inputs["pixel_values"] = torch.zeros(len(samples), MOST_TILES, 3, 84, 84)
        for row, one in enumerate(samples):
            if "pixel_values" in one:
                inputs["pixel_values"][row, : len(one["pixel_values"])] = one["pixel_values"]
        inputs["pixel_attention_mask"] = torch.ones(len(samples), MOST_TILES, 84, 84, dtype=torch.bool)
    return inputs


SAMPLES = [sample(1, 1), sample(3, 2), sample(0, 3), sample(2, 4)]
both = pytest.mark.parametrize("kind", sorted(CLASSES))


@both
@pytest.mark.parametrize("budget", [{"target_num": 4}, {"retain_ratio": 0.6}])
def test_a_batch_equals_single_runs(kind: str, budget: dict[str, Any]) -> None:
    families.check_batch(tiny_model(kind), SAMPLES, FlowCut(**budget), together)


TILES_OF_SAMPLES = [(0, 1, 2), (2, 1, 0), (1, 1), (0, 2), (3, 0, 0)]
"""Batches of as many samples as tiles: the model hands out one entry a sample, which may not be taken for a tile's."""


@both
@pytest.mark.parametrize("method", [FlowCut, DivPrune, CDPruner])
@pytest.mark.parametrize("tiles", TILES_OF_SAMPLES)
def test_as_many_samples_as_tiles_are_no_tiles(kind: str, tiles: tuple[int, ...], method: type[Method]) -> None:
    samples = [sample(count, seed) for seed, count in enumerate(tiles)]
    families.check_batch(tiny_model(kind), samples, method(target_num=4), together)


@both
@pytest.mark.filterwarnings("ignore:target_num")
@pytest.mark.parametrize("tiles", TILES_OF_SAMPLES)
@torch.no_grad()
def test_beams_of_a_batch_at_full_budget_are_those_of_the_uncut_model(kind: str, tiles: tuple[int, ...]) -> None:
    if Version(transformers.__version__) < Version("5.23") and max(tiles) > 1:
        pytest.skip("the uncut model mixes up the images of a sample for its beams")
    model = tiny_model(kind)
    samples = [sample(count, seed) for seed, count in enumerate(tiles)]
    options: dict[str, Any] = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "eos_token_id": None}
    options["suppress_tokens"] = [tiny.IMAGE_TOKEN]
    expected = [model.generate(**together([one]), **options)[0, -4:].tolist() for one in samples]
    with attach(model, FlowCut(target_num=TOKENS)):
        assert model.generate(**together(samples), **options)[:, -4:].tolist() == expected


@both
@pytest.mark.filterwarnings("ignore:target_num")
def test_a_budget_for_everything_is_exactly_the_uncut_model(kind: str) -> None:
    families.check_uncut(tiny_model(kind), together(SAMPLES))


@both
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_detach_leaves_nothing_behind(kind: str, attention: str) -> None:
    families.check_detach(tiny_model(kind, attention), together(SAMPLES), FlowCut(target_num=4))


@both
def test_flops_against_torch(kind: str) -> None:
    families.check_flops(tiny_model(kind, "eager"), together([sample(2)]), FlowCut(target_num=4))


@both
def test_loss_with_labels(kind: str) -> None:
    families.check_loss(tiny_model(kind), together(SAMPLES), FlowCut(target_num=4))


@both
@torch.no_grad()
def test_kept_tokens_are_those_of_the_kept_groups(kind: str) -> None:
    """With a single cut, all layers before it are the uncut model's: the features differ by one layer's mixing."""
    model = tiny_model(kind)
    pixels = tiny.pictures(2)[None]
    states: list[Tensor] = []
    tower, connector = model.model.vision_model, model.model.connector
    hook = tower.encoder.layers[7].register_forward_pre_hook(lambda module, args: states.append(args[0]))
    model.model.get_image_features(pixels)
    hook.remove()
    with attach(model, FlowCut(target_num=5, cut_every=100)):
        output = model.model.get_image_features(pixels)
    for state, trace, features in zip(states[0], output.flowcut_images, output.pooler_output, strict=True):
        assert (trace.grid, trace.visual_tokens) == ((3, 3), 5)
        corner = trace.kept // 3 * 2 * tiny.GRID + trace.kept % 3 * 2
        patches = (corner[:, None] + torch.tensor([0, 1, tiny.GRID, tiny.GRID + 1])).flatten()
        mixed = tower.post_layernorm(tower.encoder.layers[7](state[None, patches], None))[0]
        picture = torch.zeros(tiny.PATCHES, 32).index_copy(0, patches, mixed)
        torch.testing.assert_close(features, connector(picture[None])[0, trace.kept], rtol=1e-5, atol=1e-5)


@both
@torch.no_grad()
def test_padding_inside_a_tile_is_refused(kind: str) -> None:
    model = tiny_model(kind)
    inputs = together(SAMPLES)
    inputs["pixel_attention_mask"][0, 0, :, 42:] = False
    uncut = model(**inputs).logits
    with attach(model, FlowCut(target_num=4)), pytest.raises(UnsupportedModelError, match="padded inside its tile"):
        model(**inputs)
    with attach(model, FlowCut(retain_ratio=1.0)):
        assert torch.equal(model(**inputs).logits, uncut)


@both
def test_gradient_checkpointing(kind: str) -> None:
    families.check_checkpointing(tiny_model(kind), together(SAMPLES), FlowCut(target_num=4))
