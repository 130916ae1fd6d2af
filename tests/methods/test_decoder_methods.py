"""FastV, PyramidDrop and SparseVLM: the released choices, and what they keep against the uncut model's attention."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_qwen
import torch
from families import check_detach, check_loss, text_config
from released import RELEASED, generator, kept_of_image, prompt
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from flowcut import FastV, Method, PyramidDrop, SparseVLM, attach
from flowcut.methods.fastv import FastVPolicy
from flowcut.methods.pyramiddrop import PyramidDropPolicy, tokens_after

TARGET = 7
METHODS: dict[str, Method] = {
    "fastv": FastV(target_num=TARGET),
    "pyramiddrop": PyramidDrop(target_num=TARGET, layers=(1, 3)),
    "sparsevlm": SparseVLM(target_num=TARGET, layers=(0, 1, 2)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "fastv": {},
    "pyramiddrop": {"layers": (1, 3)},
    "sparsevlm": {"layers": (0, 1, 2)},
}


def deep_model(attention: str = "sdpa") -> Any:
    """A tiny LLaVA whose decoder has four layers."""
    config = tiny.tiny_config()
    deep = LlavaConfig(
        vision_config=config.vision_config,
        text_config=text_config(num_hidden_layers=4),
        image_token_id=tiny.IMAGE_TOKEN,
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    return tiny.concentrate(LlavaForConditionalGeneration._from_config(deep, attn_implementation=attention).eval())


def samples() -> list[dict[str, Any]]:
    """One image, two images, none, one image in a longer prompt."""
    pictures = tiny.pictures(4)
    return [
        {"input_ids": tiny.prompt(1, seed=1), "pixel_values": pictures[:1]},
        {"input_ids": tiny.prompt(2, seed=2), "pixel_values": pictures[1:3]},
        {"input_ids": tiny.prompt(0, seed=3)},
        {"input_ids": tiny.prompt(1, words=11, seed=4), "pixel_values": pictures[3:]},
    ]


def visual_columns(ids: Tensor) -> Tensor:
    return (ids[0] == tiny.IMAGE_TOKEN).nonzero()[:, 0]


@pytest.mark.parametrize("seed", range(5))
def test_fastv_as_released(seed: int) -> None:
    view = prompt(generator(seed), layer=1, visual=40, uncut=40, target=12)
    assert kept_of_image(FastVPolicy().select(view)) == RELEASED["fastv"][seed]


@pytest.mark.parametrize("seed", range(5))
def test_pyramiddrop_as_released(seed: int) -> None:
    """Three cuts one after the other, each numbered by the image's tokens that are left; ratios 1/2, 1/4 and 1/8.

    Queries and keys are drawn as they are behind the rotary embedding.
    """
    drawn, policy, visual = generator(seed), PyramidDropPolicy((7, 15, 23)), 40
    for layer, expected in zip((7, 15, 23), RELEASED["pyramiddrop"][seed], strict=True):
        assert kept_of_image(policy.select(prompt(drawn, layer, visual, uncut=40, target=5))) == expected
        visual = len(expected)
    assert visual == 5


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_fastv_keeps_what_the_last_token_attends_to(layers: int) -> None:
    model = deep_model("eager")
    inputs = {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1)}
    maps = model(**inputs, output_attentions=True).attentions
    visual = visual_columns(inputs["input_ids"])
    best = maps[layers - 1].mean(dim=1)[0, -1, visual].topk(TARGET).indices.sort().values
    with attach(model, FastV(target_num=TARGET, layers=layers)) as handle:
        model(**inputs)
        images, sequence = handle.trace.images, handle.trace.sequence
    assert sequence is not None
    assert len(images[0].kept) == tiny.PATCHES
    text = [column for column in range(inputs["input_ids"].shape[1]) if column not in visual.tolist()]
    assert sequence.output_columns[0].tolist() == sorted(text + visual[best].tolist())
    assert sequence.stretches[-1].positions[0].tolist() == sequence.output_columns[0].tolist()
    assert sequence.visual_tokens == (tiny.PATCHES,)
    assert sequence.visual_tokens_mean == ((layers * tiny.PATCHES + (4 - layers) * TARGET) / 4,)


@torch.no_grad()
def test_pyramiddrop_ranks_by_the_layer_behind_the_cut() -> None:
    model = deep_model("eager")
    inputs = {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1)}
    maps = model(**inputs, output_attentions=True).attentions
    visual = visual_columns(inputs["input_ids"])
    with attach(model, METHODS["pyramiddrop"]) as handle:
        model(**inputs)
        sequence = handle.trace.sequence
    assert sequence is not None and sequence.stretch_layers == (1, 3)
    counts = [int((stretch.image >= 0).sum()) for stretch in sequence.stretches]
    assert counts == [36, int(36 * (TARGET / 36) ** 0.5), TARGET]
    best = visual[maps[1].mean(dim=1)[0, -1, visual].topk(counts[1]).indices].sort().values
    second = sequence.stretches[1]
    kept = second.cut.columns()[0][second.image[0] >= 0]
    assert kept.tolist() == best.tolist()
    assert set(sequence.output_columns[0].tolist()) <= set(second.cut.columns()[0].tolist())


def test_pyramiddrop_s_shares() -> None:
    assert [tokens_after(cut, 3, 576, 72) for cut in (1, 2, 3)] == [288, 144, 72]
    assert [tokens_after(cut, 3, 50, 72) for cut in (1, 2, 3)] == [50, 50, 50]


@pytest.mark.parametrize("name", METHODS)
def test_batches_budgets_and_detaching(name: str) -> None:
    model, method = deep_model(), METHODS[name]
    inputs = {**tiny.batch([tiny.prompt(1), tiny.prompt(1, words=9)]), "pixel_values": tiny.pictures(2)}
    check_detach(model, inputs, method)
    check_loss(model, inputs, method)
    with torch.no_grad():
        expected = model(**inputs).logits
        with attach(model, type(method)(retain_ratio=1.0, **OPTIONS[name])):
            torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_batch_gives_what_single_runs_give(name: str, positions: str) -> None:
    model = deep_model()
    method = type(METHODS[name])(target_num=TARGET, positions=positions, **OPTIONS[name])  # type: ignore[arg-type]
    generation: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [tiny.IMAGE_TOKEN]}
    with attach(model, method) as handle:
        singles, answers = [], []
        for sample in samples():
            inputs = {**tiny.batch([sample["input_ids"]]), **{k: v for k, v in sample.items() if k != "input_ids"}}
            singles.append(model(**inputs).logits[0, -1])
            answers.append(model.generate(**inputs, **generation)[0, -5:].tolist())
            assert model.generate(**inputs, **generation, use_cache=False)[0, -5:].tolist() == answers[-1]
        together = tiny.batch([sample["input_ids"] for sample in samples()])
        together["pixel_values"] = torch.cat([s["pixel_values"] for s in samples() if "pixel_values" in s])
        torch.testing.assert_close(model(**together).logits[:, -1], torch.stack(singles), rtol=1e-5, atol=1e-5)
        assert handle.trace.sequence is not None
        left = (handle.trace.sequence.stretches[-1].image >= 0).sum(dim=1).tolist()
        if name != "sparsevlm":
            assert left == [TARGET, 2 * TARGET, 0, TARGET]
        assert left[1] == 2 * left[0] == 2 * left[3] and 0 < left[0] < tiny.PATCHES and not left[2]
        assert model.generate(**together, **generation)[:, -5:].tolist() == answers
        beams = model.generate(**together, **generation, num_beams=2)
        inputs = {**tiny.batch([samples()[0]["input_ids"]]), "pixel_values": samples()[0]["pixel_values"]}
        assert beams[0, -5:].tolist() == model.generate(**inputs, **generation, num_beams=2)[0, -5:].tolist()


@pytest.mark.parametrize("family", tiny_qwen.FAMILIES)
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_on_packed_towers(family: str, name: str) -> None:
    model = tiny_qwen.tiny_model(family)
    four = tiny_qwen.four(model)
    with attach(model, METHODS[name]) as handle:
        answers = [
            model.generate(**tiny_qwen.batch([one]), max_new_tokens=4, do_sample=False)[0, -4:].tolist() for one in four
        ]
        inputs = tiny_qwen.batch(four)
        assert model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:].tolist() == answers
        model(**inputs)
        assert handle.trace.sequence is not None
        left = (handle.trace.sequence.stretches[-1].image >= 0).sum(dim=1).tolist()
    if name != "sparsevlm":
        assert left == [TARGET, 2 * TARGET, 0, 2 * TARGET]
    assert 0 < left[0] < 24 and not left[2]
    assert all(len(image.kept) == image.patches for image in handle.trace.images)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="layers"):
        FastV(target_num=3, layers=0)
    with pytest.raises(ValueError, match="layers"):
        PyramidDrop(target_num=3, layers=(3, 1))
    with pytest.raises(ValueError, match="decoder layers"):
        attach(deep_model(), PyramidDrop(target_num=3))
