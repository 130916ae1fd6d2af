"""Qwen2-VL and what it shares with Qwen2.5-VL: batches, positions, generation, budgets, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_qwen
import torch
from families import check_flops, fingerprint, registered
from renamed import CACHE
from tiny_qwen import FAMILIES, batch, four, sample
from transformers import DynamicCache

from flowcut import FlowCut, NotAppliedError, attach

MODELS: dict[str, Any] = {}
METHODS = {
    "second cut": FlowCut(outputs="kept", target_num=5),
    "tower only": FlowCut(outputs="kept", target_num=5, decoder_layer=None),
    "ratio": FlowCut(outputs="kept", retain_ratio=0.3),
    "patches": FlowCut.as_released(5),
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    name = request.param
    if name not in MODELS:
        MODELS[name] = tiny_qwen.tiny_model(name)
    return MODELS[name]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_gives_what_single_runs_give(model: Any, method: FlowCut, side: str) -> None:
    if model.config.model_type == "qwen3_vl" and not method.cuts_groups():
        pytest.skip("Qwen3-VL merges in the middle of its tower")
    samples = four(model)
    with attach(model, method) as handle:
        kept, logits, generated = [], [], []
        for one in samples:
            inputs = batch([one])
            logits.append(model(**inputs).logits[0])
            kept += [image.kept.tolist() for image in handle.trace.images]
            generated.append(model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, -6:].tolist())
        inputs = batch(samples, side)
        output = model(**inputs)
        # In a batch all images come before all videos; the last sample here has one of each.
        together = [image.kept.tolist() for image in handle.trace.images]
        assert together == kept
        schedules = {tuple(image.tokens_after_layer) for image in handle.trace.images}
        assert len(schedules) == 5 and any(len(image.kept_after_layer) > 2 for image in handle.trace.images)
        sequence = handle.trace.sequence
        assert sequence is not None
        real = sequence.output_columns >= 0
        real &= sequence.stretches[-1].new_mask.bool()
        for row, single in enumerate(logits):
            torch.testing.assert_close(output.logits[row][real[row]], single, rtol=1e-5, atol=1e-5)
        if side == "left":
            result = model.generate(**inputs, max_new_tokens=6, do_sample=False)
            assert result[:, -6:].tolist() == generated
            assert result[:, :-6].tolist() == inputs["input_ids"].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_batch_through_a_tower_of_odd_depth(family: str) -> None:
    model = tiny_qwen.tiny_model(family, depth=5)
    with attach(model, FlowCut(outputs="kept", target_num=5)) as handle:
        kept, logits = [], []
        for one in four(model):
            logits.append(model(**batch([one])).logits[0])
            kept += [image.kept.tolist() for image in handle.trace.images]
        together = model(**batch(four(model))).logits
        assert [image.kept.tolist() for image in handle.trace.images] == kept
        # The first cut follows the first layer, the last one the last.
        assert {0, 4} <= {layer for image in handle.trace.images for layer in image.kept_after_layer}
    for row, single in zip(together, logits, strict=True):
        torch.testing.assert_close(row[-len(single) :], single, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_counts_and_grids(model: Any) -> None:
    inputs = batch(four(model))
    with attach(model, FlowCut(outputs="kept", target_num=5)) as handle:
        output = model(**inputs)
        images, sequence = handle.trace.images, handle.trace.sequence
    assert sequence is not None
    assert [image.grid for image in images] == [(1, 4, 6), (1, 5, 3), (1, 3, 7), (1, 6, 5), (3, 3, 5)]
    assert [len(image.kept) for image in images] == [10] * 5
    assert sequence.visual_tokens == (10, 20, 0, 20)
    assert [int((row >= 0).sum()) for row in sequence.stretches[-1].image] == [5, 10, 0, 10]
    lengths = [len(one.tokens) for one in four(model)]
    assert output.logits.shape[1] == max(
        lengths[0] - 24 + 5, lengths[1] - 36 + 10, lengths[2], lengths[3] - 30 - 45 + 10
    )
    for image in images:
        assert image.kept.tolist() == sorted(set(image.kept.tolist()))
        assert image.tokens_after_layer[-1] == 4 * len(image.kept)
    with attach(model, FlowCut(outputs="kept", target_num=5, decoder_layer=None)) as handle:
        model(**inputs)
        assert [len(image.kept) for image in handle.trace.images] == [5] * 5
        counted = handle.trace.sequence
    assert counted is not None
    for cut, whole in zip(counted.flops, counted.uncut_flops, strict=True):
        assert cut.total <= whole.total and cut.projector <= whole.projector


@torch.no_grad()
def test_kept_tokens_keep_the_positions_of_the_uncut_model(model: Any) -> None:
    inputs = batch(four(model))
    seen: list[torch.Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    model(**inputs)
    with attach(model, FlowCut(outputs="kept", target_num=5)) as handle:
        model(**inputs)
        sequence = handle.trace.sequence
    hook.remove()
    assert sequence is not None
    uncut, cut = seen
    real = (sequence.columns >= 0) & sequence.stretches[0].new_mask.bool()
    for row in range(len(real)):
        own = uncut[:, row, sequence.columns[row][real[row]]]
        assert cut[:, row, real[row]].tolist() == own.tolist()
    last = sequence.stretches[-1]
    for row, columns in enumerate(sequence.output_columns):
        there = (columns >= 0) & last.new_mask[row].bool()
        assert last.positions[:, row, there].tolist() == uncut[:, row, columns[there]].tolist()


@torch.no_grad()
def test_decoding_goes_on_behind_the_uncut_positions(model: Any) -> None:
    inputs = batch(four(model))
    places: list[torch.Tensor] = []
    rotary = model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: places.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    model.generate(**inputs, max_new_tokens=3, do_sample=False)
    uncut = [place[:, :, -1].tolist() for place in places]
    places.clear()
    with attach(model, FlowCut(outputs="kept", target_num=5, decoder_layer=None)):
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    rotary.remove()
    assert [place[:, :, -1].tolist() for place in places] == uncut


@torch.no_grad()
def test_images_do_not_see_one_another(model: Any) -> None:
    one = sample([(1, 8, 12), (1, 10, 8)], [], 4, seed=9)
    inputs = batch([one])
    changed = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    changed["pixel_values"][96:] = torch.randn(80, 1176)
    with attach(model, FlowCut(outputs="kept", target_num=5)):
        features, others = (
            model.get_image_features(given["pixel_values"], given["image_grid_thw"]).pooler_output
            for given in (inputs, changed)
        )
    assert torch.equal(features[0], others[0])
    assert not torch.equal(features[1], others[1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [FlowCut(target_num=500), FlowCut(retain_ratio=1.0)], ids=["huge", "ratio"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_budget_for_everything_is_exactly_the_uncut_model(family: str, method: FlowCut, attention: str) -> None:
    model = tiny_qwen.tiny_model(family, attention)
    inputs = batch(four(model))
    expected = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with attach(model, method) as handle:
        assert torch.equal(model(**inputs).logits, expected)
        assert all(image.whole for image in handle.trace.images)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_detach_leaves_nothing_behind(family: str, attention: str) -> None:
    model = tiny_qwen.tiny_model(family, attention)
    inputs = batch(four(model))
    expected = model(**inputs).logits

    before, registry = fingerprint(model), registered()
    with attach(model, FlowCut(outputs="kept", target_num=5)):
        assert model(**inputs).logits.shape[1] < expected.shape[1]
    assert fingerprint(model) == before
    assert registered() == registry
    assert torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_both_attentions_keep_the_same(model: Any) -> None:
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    inputs = batch(four(model))
    kept, logits = [], []
    for one in (model, eager):
        with attach(one, FlowCut(outputs="kept", target_num=5)) as handle:
            output = one(**inputs)
            assert handle.trace.sequence is not None
            logits.append(output.logits[handle.trace.sequence.stretches[-1].new_mask.bool()])
            kept.append([image.kept.tolist() for image in handle.trace.images])
    assert kept[0] == kept[1]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_generation_with_and_without_cache_and_with_beams(model: Any) -> None:
    inputs = batch(four(model))
    with attach(model, FlowCut(outputs="kept", target_num=5, decoder_layer=None)):
        cached = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=False), cached)
        # transformers 5.18 itself mixes up the images of a sample that has several when it repeats them for beams.
        samples = [one for one in four(model) if len(one.images) < 2]
        beams = model.generate(**batch(samples), max_new_tokens=5, do_sample=False, num_beams=3)
        for row, one in enumerate(samples):
            alone = model.generate(**batch([one]), max_new_tokens=5, do_sample=False, num_beams=3)
            assert alone[0, -5:].tolist() == beams[row, -5:].tolist()


@torch.no_grad()
def test_a_conversation_goes_on(model: Any) -> None:
    samples = four(model)
    inputs = batch(samples)
    with attach(model, FlowCut(outputs="kept", target_num=5, decoder_layer=None)):
        first = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        question = torch.randint(3, 140, (len(samples), 5), generator=torch.Generator().manual_seed(5))
        ids = torch.cat([first.sequences, question], dim=1)
        more = ids.shape[1] - inputs["input_ids"].shape[1]
        longer = {
            **inputs,
            "input_ids": ids,
            "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, more), value=1),
            "mm_token_type_ids": torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, more)),
        }
        expected = model.generate(**longer, max_new_tokens=4, do_sample=False)
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
        text = {name: longer[name] for name in ("input_ids", "attention_mask")}
        answer = model.generate(**text, **{CACHE: first[CACHE]}, max_new_tokens=4, do_sample=False)
    assert answer.tolist() == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_conversation_goes_on_with_another_image(family: str) -> None:
    """Given the places of the whole conversation, a second image on the cut cache is as one in the first prompt."""
    model = tiny_qwen.tiny_model(family)
    first, second = sample([(1, 8, 12)], [], 4, seed=1), sample([(1, 10, 6)], [], 5, seed=7)
    both = batch([tiny_qwen.Sample(first.tokens + second.tokens, first.images + second.images, [])])
    new = batch([second])
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    places, _ = model.model.get_rope_index(**{name: both[name] for name in names})
    with attach(model, FlowCut(outputs="kept", target_num=5, decoder_layer=None)):
        expected = model(**both).logits
        cache = model(**batch([first]), use_cache=True).past_key_values
        continued = {**new, "attention_mask": both["attention_mask"], "past_key_values": cache}
        logits = model(**continued, position_ids=places[:, :, -len(second.tokens) :]).logits
    torch.testing.assert_close(logits, expected[:, -logits.shape[1] :], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_image_that_only_the_decoder_cuts(model: Any) -> None:
    inputs = batch([sample([(1, 6, 8), (1, 12, 10), (1, 4, 6)], [], 4, seed=11)])
    with attach(model, FlowCut(outputs="kept", target_num=8)) as handle:
        model(**inputs)
        images, sequence = handle.trace.images, handle.trace.sequence
    assert sequence is not None
    assert [(len(image.kept), image.placeholders) for image in images] == [(12, 12), (16, 30), (6, 6)]
    assert [image.whole for image in images] == [False, False, True]
    last = sequence.stretches[-1].image[0]
    assert [int((last == number).sum()) for number in range(3)] == [8, 8, 6]


@torch.no_grad()
def test_a_decoding_step_by_hand(model: Any) -> None:
    inputs = batch(four(model))
    with attach(model, FlowCut(outputs="kept", target_num=5)):
        expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, -3:]
        output = model(**inputs, **{CACHE: DynamicCache(config=model.config.text_config)}, use_cache=True)
        mask, tokens = inputs["attention_mask"], []
        for _ in range(3):
            tokens.append(output.logits[:, -1].argmax(dim=-1, keepdim=True))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = model(input_ids=tokens[-1], attention_mask=mask, use_cache=True, **{CACHE: output[CACHE]})
    assert torch.cat(tokens, dim=1).tolist() == expected.tolist()


def test_loss_is_that_of_the_kept_tokens(model: Any) -> None:
    inputs = batch(four(model))
    labels = inputs["input_ids"].masked_fill(inputs["mm_token_type_ids"] > 0, -100)
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    with attach(model, FlowCut(outputs="kept", target_num=5)) as handle:
        output = model(**inputs, labels=labels)
        sequence = handle.trace.sequence
        assert sequence is not None
        kept = sequence.stretches[-1].cut.take(labels, -100)
        shifted = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), kept[:, 1:].flatten())
        torch.testing.assert_close(output.loss, shifted)
        model.zero_grad()
        output.loss.backward()
        assert model.model.visual.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
        model.zero_grad()


def test_gradient_checkpointing_gives_the_same_gradients(model: Any) -> None:
    model = copy.deepcopy(model)
    inputs = batch(four(model))
    gradients = []
    with attach(model, FlowCut(outputs="kept", target_num=5, decoder_layer=None)):
        for enabled in (False, True):
            if enabled:
                model.gradient_checkpointing_enable()
                model.train()
            model.zero_grad()
            model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
            gradients.append(model.model.visual.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_text_only_passes_untouched(model: Any) -> None:
    inputs = batch([four(model)[2]])
    expected = model(**inputs).logits
    with attach(model, FlowCut(outputs="kept", target_num=5)) as handle:
        assert torch.equal(model(**inputs).logits, expected)
        assert handle.trace.images == []


@torch.no_grad()
def test_errors(model: Any) -> None:
    inputs = batch(four(model)[:2])
    with pytest.raises(ValueError, match="more than the language model can read"):
        attach(model, FlowCut(outputs="kept", target_num=5000))
    with attach(model, FlowCut(outputs="kept", target_num=5)):
        missing = {**inputs, "input_ids": inputs["input_ids"].clone()}
        missing["input_ids"][0, -4] = tiny_qwen.IMAGE
        with pytest.raises(ValueError, match="placeholders"):
            model(**missing)
        encoded = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        text = {name: inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")}
        expected = model(**inputs).logits
        assert torch.equal(model(**text, mm_encoder_outputs={"image": encoded}).logits, expected)
    encoded = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    with attach(model, FlowCut(outputs="kept", target_num=5)), pytest.raises(NotAppliedError, match="not cut"):
        model(**text, mm_encoder_outputs={"image": encoded})
    with pytest.raises(ValueError, match="merge_unit"):
        FlowCut(outputs="kept", target_num=5, merge_unit="row")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_against_torch(family: str) -> None:
    inputs = batch([sample([(1, 14, 18), (1, 10, 20)], [(2, 12, 10)], 6, 41, family == "qwen3_vl")])
    check_flops(tiny_qwen.tiny_model(family, "eager"), inputs, FlowCut(outputs="kept", target_num=9))


@torch.no_grad()
def test_beams_with_the_second_cut(model: Any) -> None:
    samples = [one for one in four(model) if len(one.images) < 2]
    with attach(model, FlowCut(outputs="kept", target_num=5)):
        beams = model.generate(**batch(samples), max_new_tokens=5, do_sample=False, num_beams=3)
        for row, one in enumerate(samples):
            alone = model.generate(**batch([one]), max_new_tokens=5, do_sample=False, num_beams=3)
            assert alone[0, -5:].tolist() == beams[row, -5:].tolist()
