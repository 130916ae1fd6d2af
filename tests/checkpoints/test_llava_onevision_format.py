"""LLaVA-OneVision and LLaVA-1.6's Mistral in LLaVA's own format: a tiny model written that way and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import golden
import numpy as np
import pytest
import tiny
import tiny_checkpoint
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_llava import write_tokenizer
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.video_utils import VideoMetadata

from flowcut import FlowCut, UnsupportedModelError, attach
from flowcut.checkpoints import load_llava
from flowcut.inputs.clips import Clip
from flowcut.inputs.prompting import model_inputs

SIDE = 14 * tiny.GRID
TEXT = {name: value for name, value in families.text_config().to_dict().items() if isinstance(value, int | float)}
SIGLIP: dict[str, Any] = {**tiny.SHAPE, "intermediate_size": 64}
TOKENS = {"<|endoftext|>": 123, "<|im_start|>": 124, "<|im_end|>": 125}
BACK = {
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "model.language_model.": "model.",
}


def build() -> Any:
    """A tiny model in Hugging Face's classes, as LLaVA reads its tower: the last layer, without a head."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**SIGLIP, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=tiny.IMAGE_TOKEN,
        video_token_index=families.VIDEO_TOKEN,
        image_grid_pinpoints=[[SIDE, 2 * SIDE], [2 * SIDE, SIDE]],
    )
    return families.build(LlavaOnevisionForConditionalGeneration, config, ("vision_tower",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny model in LLaVA's own format."""
    model = build()
    state = {}
    for name, tensor in model.state_dict().items():
        old = next((old for old in BACK if name.startswith(old)), "")
        state[BACK.get(old, "") + name.removeprefix(old)] = tensor.clone()
    save_file(state, tmp_path / "model.safetensors")
    # The tower's own checkpoint has one layer more than LLaVA uses, and a head.
    whole = SiglipVisionConfig(**{**SIGLIP, "num_hidden_layers": SIGLIP["num_hidden_layers"] + 1})
    whole.save_pretrained(tmp_path / "tower")
    config = {
        **TEXT,
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        "hidden_act": "silu",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "tower",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_newline_position": "one_token",
        "mm_spatial_pool_mode": "bilinear",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[2 * SIDE, SIDE], [SIDE, 2 * SIDE]],
        "image_token_index": tiny.IMAGE_TOKEN,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@torch.no_grad()
def test_onevision_without_a_tokenizer_is_the_model_that_was_written(folder: Path) -> None:
    expected = build()
    read, processor = load_llava(folder)
    assert processor is None and isinstance(read, LlavaOnevisionForConditionalGeneration)
    tensors = {"pixel_values": tiny.pictures(3, 1)[None], "image_sizes": torch.tensor([[SIDE, 2 * SIDE]])}
    for one, other in zip(
        read.model.get_image_features(**tensors).pooler_output,
        expected.model.get_image_features(**tensors).pooler_output,
        strict=True,
    ):
        assert torch.equal(one, other)
    words = torch.tensor([[1, 5, 9, 7]])
    assert torch.equal(read(input_ids=words).logits, expected(input_ids=words).logits)


@torch.no_grad()
def test_onevision_with_its_processor_answers_about_pictures_and_videos(folder: Path) -> None:
    tiny_checkpoint.tiny_tokenizer(TOKENS).save_pretrained(folder)
    model, processor = load_llava(folder)
    assert processor is not None
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nwhat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    picture = Image.new("RGB", (150, 75), "white")
    inputs = model_inputs(processor, picture, "what is shown ?")
    assert inputs["pixel_values"].shape[1:] == (3, 3, SIDE, SIDE) and inputs["pixel_values"].max() == 1.0
    with attach(model, FlowCut(target_num=12)) as handle:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert handle.trace.sequence is not None and handle.trace.sequence.visual_tokens == (12,)
        frames = np.full((2, 75, 150, 3), 255, dtype=np.uint8)
        clip = Clip(frames, VideoMetadata(total_num_frames=2, fps=1.0))
        model.generate(**model_inputs(processor, clip, "what is shown ?"), max_new_tokens=3, do_sample=False)
        assert 0 < handle.trace.sequence.visual_tokens[0] < 2 * 9


def test_what_onevision_in_hugging_faces_classes_does_otherwise_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for changes, message in (
        ({"mm_newline_position": "grid"}, "mm_newline_position is 'grid'.*'one_token'"),
        ({"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode is 'average'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type is 'flat'"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio is 'pad'.*anyres_max_N"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UnsupportedModelError, match=message):
            load_llava(folder)


@torch.no_grad()
def test_llava_1_6_with_mistral_is_asked_in_its_own_conversation(tmp_path: Path) -> None:
    golden.write_checkpoint("llava_next", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LlavaMistralForCausalLM"]}))
    write_tokenizer(tmp_path)
    model, processor = load_llava(tmp_path)
    assert processor is not None
    assert model.config.text_config.model_type == "mistral"
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "sure?"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == "[INST] <image>\nwhat? [/INST] a cat </s>[INST] sure? [/INST]"
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(model.model.image_newline, weights["model.image_newline"])
