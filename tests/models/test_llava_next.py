"""LLaVA-NeXT: tiles, unpadding, the second cut inside the decoder."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import golden
import pytest
import tiny
import torch
from families import fingerprint
from renamed import CACHE
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
)

from flowcut import FlowCut, NotAppliedError, attach

SIDE = 14 * tiny.GRID
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
SIZES = {"wide": (60, 150), "square": (100, 90), "high": (200, 80)}
RUNS = json.loads((golden.FOLDER / "llava_next" / "meta.json").read_text())["runs"]
TARGET = 10
TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
}
DECODERS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**TEXT),
    "mistral, sliding window": MistralConfig(**TEXT, sliding_window=24, head_dim=8),
}


def next_model(decoder: str = "llama", attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**tiny.SHAPE, intermediate_size=64),
        text_config=DECODERS[decoder],
        image_token_index=tiny.IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
    )
    model = LlavaNextForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    return tiny.concentrate(model)


def sample(model: Any, sizes: list[str], words: int, seed: int) -> dict[str, Any]:
    """One prompt with images of these sizes: tokens, tiles padded to five, (height, width) of every image."""
    tokens = [1, 50 + seed]
    for name in sizes:
        with torch.no_grad():
            empty = torch.zeros(1, 5, 3, SIDE, SIDE)
            count = len(model.get_image_features(empty, torch.tensor([SIZES[name]])).pooler_output[0])
        tokens += [tiny.IMAGE_TOKEN] * count + [60 + seed]
    tokens += torch.randint(3, 120, (words,), generator=torch.Generator().manual_seed(seed)).tolist()
    tiles = [tiny.pictures(5, seed * 10 + number) for number in range(len(sizes))]
    return {"tokens": tokens, "tiles": tiles, "sizes": [SIZES[name] for name in sizes]}


def collate(samples: list[dict[str, Any]], side: str = "left") -> dict[str, Tensor]:
    inputs = tiny.batch([one["tokens"] for one in samples], side)
    tiles = [tile for one in samples for tile in one["tiles"]]
    if tiles:
        inputs["pixel_values"] = torch.stack(tiles)
        inputs["image_sizes"] = torch.tensor([size for one in samples for size in one["sizes"]])
    return inputs


def four_samples(model: Any) -> list[dict[str, Any]]:
    """Made with the uncut model: one image, none, two of different sizes, one."""
    return [
        sample(model, ["square"], 5, 1),
        sample(model, [], 7, 2),
        sample(model, ["wide", "high"], 3, 3),
        sample(model, ["high"], 11, 4),
    ]


def generate(model: Any, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    output = model.generate(**inputs, **settings)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> golden.Case:
    return golden.load_case("llava_next", tmp_path_factory.mktemp("llava_next"))


def recorded_inputs(recorded: golden.Case, run: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Prompt and pixels of a recorded run."""
    model, facts, tensors = recorded.model, RUNS[run], recorded.tensors
    width, height = facts["image_size_wh"]
    pixels = {
        "pixel_values": tensors[f"in.pixel_values_{facts['image']}"][None],
        "image_sizes": torch.tensor([[height, width]]),
    }
    count = int(tensors[f"stock.n_visual_{facts['image']}"])
    block = [model.config.image_token_id] * count
    given = tensors[f"in.input_ids_{facts['image']}"][0].tolist()
    return torch.tensor([[new for old in given for new in (block if old == -200 else [old])]]), pixels


@pytest.mark.parametrize("run", sorted(RUNS))
@torch.no_grad()
def test_released_run(recorded: golden.Case, run: str) -> None:
    model, facts, tensors = recorded.model, RUNS[run], recorded.tensors
    ids, pixels = recorded_inputs(recorded, run)
    with attach(model, FlowCut.as_released(facts["target_num"])) as handle:
        output = model(input_ids=ids, **pixels)
        trace = handle.trace
        generated = model.generate(input_ids=ids, **pixels, max_new_tokens=8, do_sample=False, eos_token_id=None)
    tiles, sequence = trace.images[0].tiles, trace.sequence
    assert sequence is not None
    assert [tile.kept.tolist() for tile in tiles] == tensors[f"{run}.vit.keep_final"].tolist()
    for tile in tiles:
        assert tile.tokens_after_layer == facts["vit_tokens_after_layer"]
    assert sequence.visual_tokens == (facts["visual_token_num"],)
    entering, leaving = sequence.stretches
    visual = entering.cut.columns()[0][entering.image[0] >= 0]
    survivors = leaving.cut.columns()[0][leaving.image[0] >= 0]
    assert torch.isin(visual, survivors).nonzero()[:, 0].tolist() == tensors[f"{run}.llm.keep"][0].tolist()
    patch = trace.images[0].layout.tokens[visual - ids[0].tolist().index(model.config.image_token_id)]
    assert torch.stack([patch // 576, patch % 576], dim=1).tolist() == tensors[f"{run}.llm.visual_source"].tolist()
    lengths = [layer.get_seq_length() for layer in output[CACHE].layers]
    assert lengths == facts["kv_len_per_layer_after_prefill"]
    last = [int(stretch.positions[0, -1]) for stretch in sequence.stretches for _ in range(2)]
    assert last == [layer["pos_last"] for layer in facts["llm_layers"]]
    logits = tensors[f"{run}.logits"]
    assert output.logits.shape == logits.shape
    assert float((output.logits - logits).abs().max() / logits.abs().max()) < 1e-4
    assert generated[:, -8:].tolist() == tensors[f"{run}.generated"].tolist()


@torch.no_grad()
def test_released_decode_positions(recorded: golden.Case) -> None:
    ids, pixels = recorded_inputs(recorded, "t32.A")
    seen: list[list[int]] = []
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["position_ids"][0].tolist()), with_kwargs=True
        )
        for layer in recorded.model.model.language_model.layers
    ]
    with attach(recorded.model, FlowCut.as_released(32)):
        recorded.model.generate(input_ids=ids, **pixels, max_new_tokens=8, do_sample=False, eos_token_id=None)
    for hook in hooks:
        hook.remove()
    assert [seen[start : start + 4] for start in range(4, len(seen), 4)] == RUNS["t32.A"]["decode_positions"]


@pytest.mark.parametrize("decoder", sorted(DECODERS))
@pytest.mark.parametrize("method", [{}, {"positions": "original"}, {"tower_budget": "paper", "image_newline": True}])
@torch.no_grad()
def test_a_batch_equals_single_runs(decoder: str, method: dict[str, Any]) -> None:
    model = next_model(decoder)
    samples = four_samples(model)
    kept, logits, answers, beams = [], [], [], []
    with attach(model, FlowCut(outputs="kept", target_num=TARGET, **method)) as handle:
        for one in samples:
            inputs = collate([one])
            logits.append(model(**inputs).logits[0])
            kept += [image.kept.tolist() for image in handle.trace.images]
            answers += generate(model, inputs)
            beams += generate(model, inputs, num_beams=2)
        for side in ("left", "right"):
            output = model(**collate(samples, side))
            sequence = handle.trace.sequence
            assert sequence is not None
            assert [image.kept.tolist() for image in handle.trace.images] == kept
            for row in range(4):
                real = sequence.output_columns[row] >= 0
                torch.testing.assert_close(output.logits[row][real], logits[row], rtol=1e-5, atol=1e-5)
        inputs = collate(samples)
        assert generate(model, inputs) == answers
        assert generate(model, inputs, use_cache=False) == answers
        assert generate(model, inputs, num_beams=2) == beams


@torch.no_grad()
def test_budgets_of_tower_and_decoder() -> None:
    model = next_model()
    inputs = collate([sample(model, ["square", "wide"], 5, 1)])
    expected = {"released": [[5] * 5, [5] * 3], "paper": [[4] * 5, [7, 7, 6]]}
    for budget, tiles in expected.items():
        with attach(model, FlowCut(outputs="kept", target_num=TARGET, tower_budget=budget)) as handle:  # type: ignore[arg-type]
            cache = model(**inputs)[CACHE]
        assert [[len(tile.kept) for tile in image.tiles] for image in handle.trace.images] == tiles
        sequence = handle.trace.sequence
        assert sequence is not None
        text = int((inputs["input_ids"] != tiny.IMAGE_TOKEN).sum())
        lengths = [layer.get_seq_length() for layer in cache.layers]
        assert lengths == [text + sequence.visual_tokens[0]] * 2 + [text + 2 * TARGET] * 2
        assert sequence.visual_tokens_mean == ((sequence.visual_tokens[0] + 2 * TARGET) / 2,)
        assert sequence.kv_entries == (sum(lengths) / 4,)
    with attach(model, FlowCut(outputs="kept", target_num=TARGET, decoder_layer=None)) as handle:
        cache = model(**inputs)[CACHE]
    assert [[len(tile.kept) for tile in image.tiles] for image in handle.trace.images] == [[2] * 5, [4, 3, 3]]
    assert len({layer.get_seq_length() for layer in cache.layers}) == 1


@pytest.mark.parametrize("target", [1, 3])
@torch.no_grad()
def test_small_and_odd_budgets(target: int) -> None:
    model = next_model()
    inputs = collate(four_samples(model))
    with attach(model, FlowCut(outputs="kept", target_num=target)) as handle:
        model(**inputs)
        assert handle.trace.sequence is not None
        left = (handle.trace.sequence.stretches[-1].image >= 0).sum(dim=1).tolist()
    assert left == [target, 0, 2 * target, target]


@torch.no_grad()
def test_newlines_stay_with_their_rows() -> None:
    model = next_model()
    inputs = collate([sample(model, ["square"], 5, 1)])
    with attach(model, FlowCut(outputs="kept", target_num=4, image_newline=True)) as handle:
        model(**inputs)
        image = handle.trace.images[0]
    tokens, kept = image.layout.tokens, image.placeholder_kept
    ends = (tokens == -2).nonzero()[:, 0].tolist()
    starts = [tiny.PATCHES, *[end + 1 for end in ends]]
    for start, end in zip(starts, ends, strict=False):
        assert bool(kept[end]) == bool(kept[start:end].any())
    assert 0 < int(kept[ends].sum()) < len(ends)


@pytest.mark.parametrize("budget", [{"retain_ratio": 1.0}, {"target_num": 1500}])
@pytest.mark.filterwarnings("ignore:target_num")
@torch.no_grad()
def test_a_budget_for_everything_is_exactly_the_uncut_model(budget: dict[str, Any]) -> None:
    model = next_model()
    inputs = collate(four_samples(model))
    expected = model(**inputs).logits
    answers = generate(model, inputs)
    with attach(model, FlowCut(**budget)):
        assert torch.equal(model(**inputs).logits, expected)
        assert generate(model, inputs) == answers
    assert torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_continuing_a_conversation_with_a_new_image() -> None:
    model = next_model()
    first, second = sample(model, ["square"], 5, 1), sample(model, ["wide"], 4, 2)
    with attach(model, FlowCut(outputs="kept", target_num=TARGET)) as handle:
        cache = model(**collate([first]))[CACHE]
        both = collate([{key: first[key] + second[key] for key in first}])
        inputs = {**collate([second]), "input_ids": both["input_ids"], "attention_mask": both["attention_mask"]}
        answer = generate(model, {**inputs, CACHE: cache})
        assert len(answer[0]) == 5 and handle.trace.images[0].target == TARGET
    text = int((both["input_ids"] != tiny.IMAGE_TOKEN).sum())
    assert [layer.get_seq_length() for layer in cache.layers][2:] == [text + 2 * TARGET + 4] * 2


def test_the_loss_and_its_gradients() -> None:
    model = next_model().train()
    inputs = collate(four_samples(model))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE_TOKEN, -100)
    # A sample's first token has nothing before it to be predicted from.
    labels = labels.masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == 1), -100)
    handle = attach(model, FlowCut(outputs="kept", target_num=TARGET))
    output = model(**inputs, labels=labels, use_cache=False)
    sequence = handle.trace.sequence
    assert sequence is not None
    losses = []
    for row, columns in enumerate(sequence.output_columns.tolist()):
        kept = [(place, column) for place, column in enumerate(columns) if column >= 0]
        for (place, _), (_, column) in pairwise(kept):
            if labels[row, column] != -100:
                losses.append(-torch.log_softmax(output.logits[row, place], -1)[labels[row, column]])
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    output.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert expected["model.vision_tower.encoder.layers.0.self_attn.q_proj.weight"].abs().sum() > 0
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(**inputs, labels=labels, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_eager_and_sdpa_agree_and_detach_is_clean() -> None:
    answers = []
    for attention in ("sdpa", "eager"):
        model = next_model(attention=attention)
        inputs = collate(four_samples(model))
        before = fingerprint(model)
        with attach(model, FlowCut(outputs="kept", target_num=TARGET)):
            answers.append(generate(model, inputs))
        assert fingerprint(model) == before
    assert answers[0] == answers[1]


@pytest.mark.parametrize("decoder", sorted(DECODERS))
@torch.no_grad()
def test_flex_attention_in_the_decoder(decoder: str) -> None:
    logits, answers = [], []
    for attention in ("sdpa", "flex_attention"):
        model = next_model(decoder)
        model.model.language_model.set_attn_implementation(attention)
        inputs = collate(four_samples(model))
        # Not compiled: torch 2.14's kernel for CPUs does not build for a decoding step or a sliding window.
        with (
            torch.compiler.set_stance("force_eager"),
            attach(model, FlowCut(outputs="kept", target_num=TARGET)) as handle,
        ):
            output = model(**inputs).logits
            assert handle.trace.sequence is not None
            logits.append(output[handle.trace.sequence.output_columns >= 0])
            answers.append(generate(model, inputs))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)
    assert answers[1] == answers[0]


@torch.no_grad()
def test_errors() -> None:
    model = next_model()
    inputs = collate([sample(model, ["square"], 5, 1)])
    with pytest.raises(ValueError, match="between 0 and 2"):
        attach(model, FlowCut(outputs="kept", target_num=TARGET, decoder_layer=3))
    with pytest.raises(ValueError, match="tower_budget"):
        FlowCut(outputs="kept", target_num=TARGET, tower_budget="double")  # type: ignore[arg-type]
    attach(model, FlowCut(outputs="kept", target_num=TARGET))
    attention = model.model.language_model.layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(NotAppliedError, match="Decoder layer 1 ran without its attention being seen"):
        model(**inputs)
