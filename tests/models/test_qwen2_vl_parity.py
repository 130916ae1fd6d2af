"""Qwen2-VL with one image, number for number what the released code does."""

from __future__ import annotations

import json
from typing import Any

import golden
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from flowcut import FlowCut, attach

FOLDER = golden.FOLDER / "qwen2vl_d8"
META = json.loads((FOLDER / "meta.json").read_text())
TENSORS = load_file(FOLDER / "tensors.safetensors")
SPECIAL = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")


@pytest.fixture(scope="module")
def model() -> Any:
    text = dict(META["config"]["text_config"])
    special = {name: text.pop(name) for name in SPECIAL}
    del text["vision_token_id"]
    config = Qwen2VLConfig(vision_config=META["config"]["vision_config"], text_config=text, **special)
    model = Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    weights = {
        f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in load_file(FOLDER / "weights.safetensors").items()
    }
    model.load_state_dict(weights)
    return model


def inputs() -> dict[str, Tensor]:
    ids = TENSORS["in.input_ids"].long()
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == META["config"]["text_config"]["image_token_id"]).int(),
        "pixel_values": TENSORS["in.pixel_values"],
        "image_grid_thw": TENSORS["in.image_grid_thw"].long(),
    }


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def test_stock_model(model: Any) -> None:
    assert relative_error(model(**inputs()).logits, TENSORS["stock.logits"]) < 1e-4


@pytest.mark.parametrize("run", META["runs"])
@torch.no_grad()
def test_positions_may_be_given(model: Any, run: str) -> None:
    given = {**inputs(), "position_ids": TENSORS["in.position_ids"].long()}
    del given["mm_token_type_ids"]
    with attach(model, FlowCut.as_released(META["runs"][run]["target_num"])):
        assert relative_error(model(**given).logits, TENSORS[f"{run}.logits"]) < 1e-4


@pytest.mark.parametrize("run", META["runs"])
@torch.no_grad()
def test_released_run(model: Any, run: str) -> None:
    facts = META["runs"][run]
    expected = {name.removeprefix(f"{run}."): tensor for name, tensor in TENSORS.items() if name.startswith(f"{run}.")}
    seen: dict[str, Any] = {}
    with attach(model, FlowCut.as_released(facts["target_num"])) as handle:
        hooks = [
            model.model.visual.merger.register_forward_pre_hook(lambda module, args: seen.update(merger_in=args[0])),
            model.model.language_model.register_forward_pre_hook(
                lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
            ),
        ]
        output = model(**inputs())
        for hook in hooks:
            hook.remove()
        (image,), sequence = handle.trace.images, handle.trace.sequence
        generated = model.generate(**inputs(), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert sequence is not None
    assert image.grid == (1, 14, 18)
    assert image.kept.tolist() == expected["vit.keep_final"].tolist()
    assert image.tokens_after_layer == expected["vit.n_tokens_after_layer"].tolist()
    for layer, alive in image.kept_after_layer.items():
        if f"vit.L{layer:02d}.keep" in expected:
            assert alive.tolist() == expected[f"vit.L{layer:02d}.keep"].tolist()
    assert relative_error(seen["merger_in"], expected["vit.merger_in"]) < 1e-4
    assert relative_error(seen["inputs_embeds"], expected["llm.inputs_embeds"]) < 1e-4
    assert seen["position_ids"].tolist() == expected["llm.position_ids"].tolist()
    last = sequence.stretches[-1]
    assert last.positions.tolist() == expected["llm.position_ids_after_prune"].tolist()
    entering = (sequence.stretches[0].image[0] == 0).nonzero()[:, 0]
    columns = sequence.columns[0][entering].tolist()
    kept = [columns.index(column) for column in sequence.output_columns[0][last.image[0] == 0].tolist()]
    assert kept == expected["llm.keep"].tolist()
    lengths = [
        length
        for length, layers in zip((s[0] for s in sequence.kv_entries_per_stretch), (2, 2), strict=True)
        for _ in range(layers)
    ]
    assert lengths == facts["kv_len_per_layer_after_prefill"]
    assert relative_error(output.logits, expected["logits"]) < 1e-4
    assert generated[:, -8:].tolist() == expected["generated"].tolist()
