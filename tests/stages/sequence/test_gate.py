"""The gate in front of the language model, through generation of every kind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from renamed import CACHE
from transformers import DynamicCache

from flowcut import FlowCut, FlowCutError, NotAppliedError, attach

TARGET = 9


def generate(model: Any, inputs: dict[str, Any], new_tokens: int = 6, **options: Any) -> list[list[int]]:
    """Only the new tokens, end of sequence ignored."""
    settings = {
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        **options,
    }
    output = model.generate(**inputs, **settings)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def by_hand(model: Any, prompt: list[int], pixels: torch.Tensor, positions: str, new_tokens: int) -> list[int]:
    """Greedy decoding without cache and without ``generate``: the shortened sequence built in the test."""
    encoded = model.get_image_features(pixels)
    features = encoded.pooler_output
    embed = model.get_input_embeddings()
    tokens, columns, kept_positions, image, seen = [], 0, [], -1, 0
    kept = [trace.kept.tolist() for trace in encoded.flowcut_images]
    for column, token in enumerate(prompt):
        if token == tiny.IMAGE_TOKEN:
            if column == 0 or prompt[column - 1] != tiny.IMAGE_TOKEN:
                image, seen = image + 1, 0
            if seen in kept[image]:
                tokens.append(features[image][kept[image].index(seen)])
                kept_positions.append(column)
            seen += 1
        else:
            tokens.append(embed(torch.tensor(token)))
            kept_positions.append(column)
        columns += 1
    answer: list[int] = []
    for _ in range(new_tokens):
        states = torch.stack(tokens)[None]
        position_ids = torch.tensor([kept_positions if positions == "original" else list(range(len(tokens)))])
        hidden = model.model.language_model(
            inputs_embeds=states,
            position_ids=position_ids,
            attention_mask=torch.ones(states.shape[:2]),
            use_cache=False,
        ).last_hidden_state
        answer.append(int(model.lm_head(hidden[0, -1]).argmax()))
        tokens.append(embed(torch.tensor(answer[-1])))
        kept_positions.append(columns)
        columns += 1
    return answer


@pytest.fixture
def model() -> Any:
    return tiny.tiny_model()


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_generation_equals_decoding_by_hand(model: Any, positions: str, use_cache: bool) -> None:
    pixels = tiny.pictures(2)
    prompt = tiny.prompt(2)
    attach(model, FlowCut(target_num=TARGET, positions=positions))
    expected = by_hand(model, prompt, pixels, positions, 6)
    inputs = {**tiny.batch([prompt]), "pixel_values": pixels}
    assert generate(model, inputs, use_cache=use_cache) == [expected]


def mixed_batch() -> tuple[list[list[int]], list[torch.Tensor]]:
    """One image, none, two, one: prompts of different lengths and each one's pixels."""
    pixels = tiny.pictures(4)
    prompts = [tiny.prompt(1, 5, 1), tiny.prompt(0, 9, 2), tiny.prompt(2, 3, 3), tiny.prompt(1, 12, 4)]
    return prompts, [pixels[:1], pixels[:0], pixels[1:3], pixels[3:]]


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
@torch.no_grad()
def test_mixed_batch_generates_what_single_runs_generate(model: Any, positions: str, options: Any) -> None:
    prompts, pixels = mixed_batch()
    attach(model, FlowCut(target_num=TARGET, positions=positions))
    single = []
    for tokens, picture in zip(prompts, pixels, strict=True):
        inputs: dict[str, Any] = tiny.batch([tokens])
        if len(picture):
            inputs["pixel_values"] = picture
        single += generate(model, inputs, **options)
    together = generate(model, {**tiny.batch(prompts), "pixel_values": torch.cat(pixels)}, **options)
    assert together == single


@torch.no_grad()
def test_several_return_sequences_and_sampling(model: Any) -> None:
    pixels = tiny.pictures(2)
    inputs = {**tiny.batch([tiny.prompt(1, 5, 1), tiny.prompt(1, 9, 2)]), "pixel_values": pixels}
    attach(model, FlowCut(target_num=TARGET))
    torch.manual_seed(3)
    sampled = generate(model, inputs, do_sample=True, num_return_sequences=3)
    assert len(sampled) == 6
    assert len({tuple(row) for row in sampled}) > 1
    beams = generate(model, inputs, num_beams=3, num_return_sequences=2)
    best = generate(model, inputs, num_beams=3)
    assert [beams[0], beams[2]] == best


@torch.no_grad()
def test_trace_keeps_one_entry_for_every_given_image_under_beams(model: Any) -> None:
    handle = attach(model, FlowCut(target_num=TARGET))
    generate(model, {**tiny.batch([tiny.prompt(2)]), "pixel_values": tiny.pictures(2)}, num_beams=3)
    assert handle.trace.sequence is not None
    assert handle.trace.sequence.visual_tokens == (2 * TARGET,) * 3


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("second_image", [False, True])
@torch.no_grad()
def test_continuing_on_the_same_cache(model: Any, positions: str, second_image: bool) -> None:
    pixels = tiny.pictures(2)
    first = tiny.prompt(1, 5, 1)
    attach(model, FlowCut(target_num=TARGET, positions=positions))
    cache = DynamicCache(config=model.config.text_config)
    answer = generate(model, {**tiny.batch([first]), "pixel_values": pixels[:1], CACHE: cache})[0]
    second = first + answer + tiny.prompt(1 if second_image else 0, 4, 7)
    inputs: dict[str, Any] = tiny.batch([second])
    expected = generate(model, {**inputs, "pixel_values": pixels if second_image else pixels[:1]})
    copied = copy.deepcopy(cache)
    for past in (cache, copied):
        continued = {**inputs, CACHE: past}
        if second_image:
            continued["pixel_values"] = pixels[1:]
        assert generate(model, continued) == expected


@torch.no_grad()
def test_two_generations_may_interleave(model: Any) -> None:
    pixels = tiny.pictures(2)
    prompts = [tiny.prompt(1, 5, 1), tiny.prompt(1, 9, 2)]
    attach(model, FlowCut(target_num=TARGET))
    expected = [
        generate(model, {**tiny.batch([p]), "pixel_values": pixels[i : i + 1]})[0] for i, p in enumerate(prompts)
    ]
    caches = [DynamicCache(config=model.config.text_config) for _ in prompts]
    answers: list[list[int]] = [[], []]
    for step in range(6):
        for i, tokens in enumerate(prompts):
            inputs = {"input_ids": torch.tensor([tokens if step == 0 else answers[i][-1:]])}
            if step == 0:
                inputs["pixel_values"] = pixels[i : i + 1]
            logits = model(**inputs, **{CACHE: caches[i]}).logits
            answers[i].append(int(logits[0, -1].argmax()))
    assert answers == expected


@torch.no_grad()
def test_prompt_lookup_decoding_crops_the_cache(model: Any) -> None:
    prompt = tiny.prompt(1, 5, 1)
    prompt = prompt + prompt[-5:] + prompt[-5:]
    inputs = {**tiny.batch([prompt]), "pixel_values": tiny.pictures(1)}
    attach(model, FlowCut(target_num=TARGET))
    expected = generate(model, inputs, 12)
    assert generate(model, inputs, 12, prompt_lookup_num_tokens=3) == expected


@torch.no_grad()
def test_inputs_embeds_with_pixels(model: Any) -> None:
    inputs = {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1)}
    attach(model, FlowCut(target_num=TARGET))
    expected = model(**inputs).logits
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=embeds, **inputs).logits, expected)


@torch.no_grad()
def test_features_encoded_by_the_user_are_accepted(model: Any) -> None:
    inputs = {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1)}
    attach(model, FlowCut(target_num=TARGET))
    expected = model(**inputs).logits
    encoded = model.get_image_features(inputs.pop("pixel_values"))
    assert torch.equal(model(**inputs, mm_encoder_outputs={"image": encoded}).logits, expected)


@torch.no_grad()
def test_uncut_features_are_refused(model: Any) -> None:
    inputs = {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1)}
    encoded = model.get_image_features(inputs.pop("pixel_values"))
    attach(model, FlowCut(target_num=TARGET))
    with pytest.raises(NotAppliedError, match="were not cut"):
        model(**inputs, mm_encoder_outputs={"image": encoded})


@torch.no_grad()
def test_placeholders_and_images_must_agree(model: Any) -> None:
    attach(model, FlowCut(target_num=TARGET, outputs="kept"))
    inputs = tiny.batch([tiny.prompt(1)])
    with pytest.raises(ValueError, match=rf"{tiny.PATCHES} image placeholders.*2 image.*{2 * tiny.PATCHES}"):
        model(**inputs, pixel_values=tiny.pictures(2))
    short = tiny.batch([tiny.prompt(1, placeholders=tiny.PATCHES - 1), tiny.prompt(1, placeholders=tiny.PATCHES + 1)])
    with pytest.raises(ValueError, match="spread over two samples"):
        model(**short, pixel_values=tiny.pictures(2))
    assert model(**inputs, pixel_values=tiny.pictures(1)).logits.shape[1] == len(tiny.prompt(1)) - tiny.PATCHES + TARGET


@torch.no_grad()
def test_what_is_not_supported_says_so(model: Any) -> None:
    attach(model, FlowCut(target_num=TARGET))
    inputs = {**tiny.batch([tiny.prompt(1)]), "pixel_values": tiny.pictures(1)}
    with pytest.raises(FlowCutError, match="prefill_chunk_size=8"):
        generate(model, inputs, prefill_chunk_size=8)
    full = torch.zeros(1, 1, inputs["input_ids"].shape[1], inputs["input_ids"].shape[1])
    with pytest.raises(FlowCutError, match="two-dimensional attention masks"):
        model(**{**inputs, "attention_mask": full})
    cache = model(**inputs)[CACHE]
    with pytest.raises(FlowCutError, match="whole uncut sequence"):
        model(input_ids=torch.tensor([[5]]), attention_mask=torch.ones(1, 12), **{CACHE: cache})


@torch.no_grad()
def test_text_only_passes_untouched(model: Any) -> None:
    inputs = tiny.batch([tiny.prompt(0, 7, 1), tiny.prompt(0, 4, 2)])
    expected = model(**inputs).logits
    answers = generate(model, inputs)
    handle = attach(model, FlowCut(target_num=TARGET))
    assert torch.equal(model(**inputs).logits, expected)
    assert generate(model, inputs) == answers
    assert handle.trace.images == []


@torch.no_grad()
def test_left_and_right_padding_give_the_same_logits(model: Any) -> None:
    prompts, pixels = mixed_batch()
    handle = attach(model, FlowCut(target_num=TARGET, outputs="kept"))
    rows = {}
    for side in ("left", "right"):
        logits = model(**tiny.batch(prompts, side), pixel_values=torch.cat(pixels)).logits
        sequence = handle.trace.sequence
        assert sequence is not None
        assert logits.shape[1] == max(sequence.kv_entries)
        rows[side] = [logits[i][sequence.attention_mask[i].bool()] for i in range(4)]
    for left, right in zip(rows["left"], rows["right"], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_columns_name_the_source_of_every_token(model: Any) -> None:
    prompts, pixels = mixed_batch()
    handle = attach(model, FlowCut(target_num=TARGET))
    inputs = tiny.batch(prompts)
    model(**inputs, pixel_values=torch.cat(pixels))
    sequence = handle.trace.sequence
    assert sequence is not None and sequence.source_length == inputs["input_ids"].shape[1]
    images = iter(handle.trace.images)
    for row, tokens in enumerate(prompts):
        columns = sequence.columns[row]
        source = inputs["input_ids"][row][columns[columns >= 0]]
        assert source[source != tiny.IMAGE_TOKEN].tolist() == [t for t in tokens if t != tiny.IMAGE_TOKEN]
        kept = [next(images).kept for _ in range(len(pixels[row]))]
        assert (source == tiny.IMAGE_TOKEN).sum() == TARGET * len(kept)
        start = int((inputs["input_ids"][row] == tiny.IMAGE_TOKEN).nonzero()[0]) if kept else 0
        if kept:
            first_image = columns[(columns >= start) & (columns < start + tiny.PATCHES)] - start
            assert first_image.tolist() == kept[0].tolist()


@torch.no_grad()
def test_beams_see_the_images_of_their_sample_in_order(model: Any) -> None:
    """Two images in one sample must come as A, B for every beam, not as A, A and B, B."""
    pixels = tiny.pictures(3)
    prompts = [tiny.prompt(2, 5, 1), tiny.prompt(1, 6, 2)]
    attach(model, FlowCut(target_num=TARGET))
    encoded = model.get_image_features(pixels)
    features = [feature.clone() for feature in encoded.pooler_output]
    inputs = tiny.batch(prompts)
    expanded = model._expand_multimodal_outputs(inputs["input_ids"], {"image": encoded}, expand_size=2)["image"]
    order = [0, 1, 0, 1, 2, 2]
    for feature, image in zip(expanded.pooler_output, order, strict=True):
        assert torch.equal(feature, features[image])
    assert len(expanded.flowcut_images) == len(order)
