"""Tiny checkpoints and local tasks that lmms-eval runs without a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import tiny_checkpoint
import tiny_qwen
import tiny_video
import transformers

from flowcut.harness.exporting import export_tasks
from flowcut.tasks import load_split
from flowcut.tasks.evaluation import choose_questions

SPLIT, TASKS, LIMIT = "photo-v2", ("exist", "count"), 10
INTERNVL = {"<start>": 120, "<end>": 121, "<IMG_CONTEXT>": tiny.IMAGE_TOKEN, "<video>": families.VIDEO_TOKEN}
VISUAL = "<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>"
INTERNVL_TEMPLATE = tiny_video.QWEN_TEMPLATE.replace(VISUAL, "<IMG_CONTEXT>")
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER : {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image> {% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %} ASSISTANT :{% endif %}{% endfor %}"
)
"""Takes contents as texts, too, which lmms-eval's llava_hf writes for likelihoods."""


def require_lmms_eval() -> None:
    """Skip where lmms-eval is not installed, unless this run is to have it."""
    if not os.environ.get("FLOWCUT_REQUIRE_LMMS_EVAL"):
        pytest.importorskip("lmms_eval")


def asked() -> Any:
    """The questions of the exported tasks."""
    return choose_questions(load_split(SPLIT), TASKS, per_task=LIMIT // len(TASKS))


def write_tasks(folder: Path) -> Path:
    """A few questions about photographs as tasks of the harness."""
    export_tasks(folder, load_split(SPLIT), asked())
    return folder


def save_llava(folder: Path) -> Path:
    """A tiny LLaVA with a chat template."""
    tiny.tiny_model().save_pretrained(folder)
    tiny_checkpoint.tiny_processor(LLAVA_TEMPLATE).save_pretrained(folder)
    return folder


def save_internvl(folder: Path) -> Path:
    """A tiny InternVL with its processor."""
    side = 2 * tiny_video.SIDE
    vision = {**tiny.SHAPE, "image_size": [side, side], "patch_size": [14, 14], "intermediate_size": 64}
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**vision),
        text_config=families.text_config(),
        image_token_id=tiny.IMAGE_TOKEN,
        image_seq_length=tiny.PATCHES,
    )
    families.build(transformers.InternVLForConditionalGeneration, config, ("vision_tower",)).save_pretrained(folder)
    tokenizer: Any = tiny_checkpoint.tiny_tokenizer(INTERNVL)
    tokens = zip(("start_image", "end_image", "context_image", "video"), INTERNVL, strict=True)
    for name, token in tokens:
        tokenizer._set_model_specific_special_tokens({f"{name}_token": token})
    transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(
            size={"height": side, "width": side}, min_patches=1, max_patches=2
        ),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size={"height": side, "width": side}),
        image_seq_length=tiny.PATCHES,
        chat_template=INTERNVL_TEMPLATE,
    ).save_pretrained(folder)
    return folder


def save_with_template(folder: Path, name: str) -> Path:
    """A tiny checkpoint with a chat template, of ``tiny_video``; Qwen3-VL's patches are of their real size."""
    processor = tiny_video.tiny_processor(name)
    with pytest.MonkeyPatch.context() as patched:
        if name == "qwen3_vl":
            patched.setitem(tiny_qwen.TOWER, "patch_size", 16)
            processor.image_processor.patch_size = 16
        tiny_video.tiny_model(name).save_pretrained(folder)
    if name not in tiny_video.PACKED:
        processor.chat_template = LLAVA_TEMPLATE
    processor.save_pretrained(folder)
    return folder
