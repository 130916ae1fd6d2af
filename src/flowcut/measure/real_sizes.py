"""Every family at the widths of one of its real checkpoints, with random weights and few decoder layers.

Tower depth, hidden sizes, heads and MLPs are those of ``hub_id``. Left out is what costs no matrix product in a
prefill: the vocabulary (1,024 entries), and the decoder layers that would not fit or take too long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..models import find_parts

IMAGE, VIDEO, START, END = 1020, 1021, 1022, 1023
VOCABULARY = {"vocab_size": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA: dict[str, Any] = {**VOCABULARY, "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096}
MISTRAL: dict[str, Any] = {**LLAMA, "model_type": "mistral", "intermediate_size": 14336, "num_key_value_heads": 8}
LLAMA3: dict[str, Any] = {
    **LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
QWEN2: dict[str, Any] = {**LLAMA, "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944}
QWEN2 |= {"num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768}
PLACES = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
PACKED_TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
PACKED_TOKENS |= {"vision_start_token_id": START, "vision_end_token_id": END}
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
}
CLIP |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14}
SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
}
SIGLIP |= {"num_attention_heads": 16, "image_size": 384, "patch_size": 14}


@dataclass(frozen=True)
class Subject:
    """One family to measure.

    Attributes:
        hub_id: the checkpoint whose widths these are.
        model_class: its class in transformers.
        config: arguments of its config.
        text: those of its language model, without the number of layers.
        layers: decoder layers to measure with.
        visual_tokens: visual tokens of the input, uncut.
        inputs: makes the tensors of its image or video.
        token: the placeholder.
        picture: the input, in words.
    """

    hub_id: str
    model_class: str
    config: dict[str, Any]
    text: dict[str, Any]
    layers: int
    visual_tokens: int
    inputs: Callable[[], dict[str, Tensor]]
    picture: str
    token: int = IMAGE


def pixels(*shape: int) -> Tensor:
    """A picture made of blocks and noise, so that its patches differ from one another."""
    generator = torch.Generator().manual_seed(1)
    height, width = shape[-2:]
    coarse = torch.randn(*shape[:-2], height // 28 + 1, width // 28 + 1, generator=generator)
    blocks = coarse.repeat_interleave(28, dim=-2).repeat_interleave(28, dim=-1)[..., :height, :width]
    return blocks + 0.3 * torch.randn(*shape, generator=generator)


def packed(side: int, values: int) -> Callable[[], dict[str, Tensor]]:
    """One square image of ``side`` by ``side`` patches for a tower that packs patches of ``values`` numbers."""

    def make() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        brightness = torch.randn(side * side // 4, 1, generator=generator).repeat_interleave(4, dim=0)
        patches = brightness + 0.5 * torch.randn(side * side, values, generator=generator)
        return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, side, side]])}

    return make


SUBJECTS: dict[str, Subject] = {
    "llava": Subject(
        "llava-hf/llava-1.5-7b-hf",
        "LlavaForConditionalGeneration",
        {"vision_config": CLIP, "image_token_id": IMAGE},
        LLAMA,
        2,
        576,
        lambda: {"pixel_values": pixels(1, 3, 336, 336)},
        "336 x 336",
    ),
    "llava_next": Subject(
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "LlavaNextForConditionalGeneration",
        {"vision_config": CLIP, "image_token_id": IMAGE, "image_grid_pinpoints": [[336, 336]]},
        MISTRAL,
        3,
        576 + 24 * 25,
        lambda: {"pixel_values": pixels(1, 2, 3, 336, 336), "image_sizes": torch.tensor([[336, 336]])},
        "336 x 336, 2 tiles",
    ),
    "video_llava": Subject(
        "LanguageBind/Video-LLaVA-7B-hf",
        "VideoLlavaForConditionalGeneration",
        {"vision_config": {**CLIP, "image_size": 224}, "image_token_index": IMAGE, "video_token_index": VIDEO},
        LLAMA,
        1,
        8 * 257,
        lambda: {"pixel_values_videos": pixels(1, 8, 3, 224, 224)},
        "8 frames, 224 x 224",
        VIDEO,
    ),
    "qwen2_vl": Subject(
        "Qwen/Qwen2-VL-7B-Instruct",
        "Qwen2VLForConditionalGeneration",
        {
            "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
            **PACKED_TOKENS,
        },
        {**QWEN2, **PLACES, "model_type": "qwen2_vl_text"},
        4,
        196,
        packed(28, 1176),
        "392 x 392",
    ),
    "qwen2_5_vl": Subject(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Qwen2_5_VLForConditionalGeneration",
        {
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            **PACKED_TOKENS,
        },
        {**QWEN2, **PLACES, "model_type": "qwen2_5_vl_text"},
        4,
        196,
        packed(28, 1176),
        "392 x 392",
    ),
    "qwen3_vl": Subject(
        "Qwen/Qwen3-VL-8B-Instruct",
        "Qwen3VLForConditionalGeneration",
        {
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "out_hidden_size": 4096,
                "patch_size": 16,
                "deepstack_visual_indexes": [8, 16, 24],
            },
            **PACKED_TOKENS,
        },
        {
            **LLAMA3,
            "model_type": "qwen3_vl_text",
            "intermediate_size": 12288,
            "head_dim": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
        4,
        196,
        packed(28, 1536),
        "448 x 448",
    ),
    "llava_onevision": Subject(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "LlavaOnevisionForConditionalGeneration",
        {
            "vision_config": {**SIGLIP, "num_hidden_layers": 26, "vision_use_head": False},
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "image_grid_pinpoints": [[384, 384]],
        },
        QWEN2,
        1,
        729 + 27 * 28,
        lambda: {"pixel_values": pixels(1, 2, 3, 384, 384), "image_sizes": torch.tensor([[384, 384]])},
        "384 x 384, 2 tiles",
    ),
    "idefics3": Subject(
        "HuggingFaceM4/Idefics3-8B-Llama3",
        "Idefics3ForConditionalGeneration",
        {
            "vision_config": {**SIGLIP, "model_type": "idefics3_vision", "image_size": 364},
            "image_token_id": IMAGE,
            "scale_factor": 2,
            "pad_token_id": 0,
        },
        LLAMA3,
        3,
        2 * 169,
        lambda: {"pixel_values": pixels(1, 2, 3, 364, 364)},
        "2 tiles, 364 x 364",
    ),
    "smolvlm": Subject(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "SmolVLMForConditionalGeneration",
        {
            "vision_config": {**SIGLIP, "model_type": "smolvlm_vision"},
            "image_token_id": IMAGE,
            "scale_factor": 3,
            "pad_token_id": 0,
        },
        {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192},
        8,
        2 * 81,
        lambda: {"pixel_values": pixels(1, 2, 3, 384, 384)},
        "2 tiles, 384 x 384",
    ),
    "internvl": Subject(
        "OpenGVLab/InternVL3-8B-hf",
        "InternVLForConditionalGeneration",
        {
            "vision_config": {
                **CLIP,
                "model_type": "internvl_vision",
                "image_size": [448, 448],
                "patch_size": [14, 14],
                "use_absolute_position_embeddings": True,
                "layer_scale_init_value": 0.1,
                "use_qk_norm": False,
            },
            "image_token_id": IMAGE,
            "downsample_ratio": 0.5,
        },
        QWEN2,
        4,
        256,
        lambda: {"pixel_values": pixels(1, 3, 448, 448)},
        "448 x 448",
    ),
}


def build(subject: Subject, layers: int, attention: str, attention_std: float, device: str, dtype: torch.dtype) -> Any:
    """The family's model; its towers attend sharply enough for the schedule to cut early."""
    torch.manual_seed(0)
    model_class = getattr(transformers, subject.model_class)
    text = {**subject.text, "num_hidden_layers": layers}
    config = model_class.config_class(**subject.config, text_config=text)
    with torch.device(device):
        model = model_class._from_config(config, attn_implementation=attention, dtype=dtype).eval()
    for tower in find_parts(model)[1].towers:
        for module in tower.attentions:
            concentrate(module, attention_std, has_cls=tower.prefix > 0)
    return model


@torch.no_grad()
def concentrate(attention: nn.Module, std: float, has_cls: bool) -> None:
    """Spread query and key weights; where the global token is a mean over tokens, also the queries' common part."""
    for name, parameter in attention.named_parameters():
        width = parameter.shape[-1]
        if name == "qkv.weight":
            parameter[: 2 * len(parameter) // 3].normal_(0.0, std)
        elif name in ("q_proj.weight", "k_proj.weight"):
            parameter.normal_(0.0, std)
        elif name == "qkv.bias" and not has_cls:
            parameter[: width // 3].normal_(0.0, std * (width // 3) ** 0.5)
        elif name == "q_proj.bias" and not has_cls:
            parameter.normal_(0.0, std * width**0.5)


def prompt(subject: Subject, words: int) -> dict[str, Tensor]:
    """Words, the placeholders, words."""
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(3, 1000, (words,), generator=generator)
    visual = torch.full((subject.visual_tokens,), subject.token)
    ids = torch.cat([text[: words // 2], visual, text[words // 2 :]])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **subject.inputs()}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs
