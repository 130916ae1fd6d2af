"""Assemble the trained parts and the pretrained ones into one Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitImageProcessor,
    Dinov2Model,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .features import MEAN, STD
from .scene import GRID, PATCH, SIDE
from .student import adapter_config
from .tower import read_adapters, with_adapters
from .workspace import Workspace

IMAGE_TOKEN = "<image>"
_RENAMED_TOKEN = "<file_sep>"
"""An unused special token of SmolLM2. Taking its place for `<image>` leaves the embedding table as it is."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's chat format without its default system turn; a picture stands before its question."""


def tokenizer_with_image(workspace: Workspace) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, one of its unused special tokens renamed to `<image>`."""
    tokenizer = AutoTokenizer.from_pretrained(workspace.language)
    described = tokenizer.backend_tokenizer.to_str().replace(_RENAMED_TOKEN, IMAGE_TOKEN)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(described),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token,
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def assemble(workspace: Workspace, trained: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The whole model in float32, adapters merged, and its processor.

    Args:
        workspace: where the converted tower and language model lie.
        trained: a folder as `Student.save` writes it.
    """
    tokenizer = tokenizer_with_image(workspace)
    adapted_tower = with_adapters(Dinov2Model.from_pretrained(workspace.tower, dtype=torch.float32))
    read_adapters(adapted_tower, trained)
    tower: Dinov2Model = adapted_tower.merge_and_unload()
    language = AutoModelForCausalLM.from_pretrained(workspace.language, dtype=torch.float32)
    adapted = get_peft_model(language, adapter_config())
    set_peft_model_state_dict(adapted, load_file(trained / "adapters.safetensors"))
    merged = adapted.merge_and_unload()
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=merged.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(merged.model.state_dict())
    projector = {key: value.float() for key, value in load_file(trained / "projector.safetensors").items()}
    model.model.multi_modal_projector.load_state_dict(projector)
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    images = BitImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )
    return model.eval(), processor


def export(workspace: Workspace, trained: Path, target: Path, dtype: torch.dtype) -> None:
    """Write model and processor with `save_pretrained`, loadable with `from_pretrained`."""
    model, processor = assemble(workspace, trained)
    model.to(dtype).save_pretrained(target)
    processor.save_pretrained(target)
