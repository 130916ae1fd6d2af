"""A tiny LLaVA with a processor on disk, and pictures: what the command line needs, offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

SIZE = 14 * tiny.GRID
SPECIAL = {"<pad>": tiny.PAD_TOKEN, "<s>": 1, "</s>": 2}
LLAVA = {"<image>": tiny.IMAGE_TOKEN}
WORDS = ("USER", "ASSISTANT", ":", "what", "is", "shown", "?", "<unk>")


def tiny_tokenizer(visual: Mapping[str, int] = LLAVA, **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with one entry for each token id of a tiny model, and the ``visual`` tokens as they are."""
    vocabulary = dict(SPECIAL)
    for word in (*WORDS, *(f"word{number}" for number in range(tiny.IMAGE_TOKEN))):
        if len(vocabulary) < min(visual.values()):
            vocabulary[word] = len(vocabulary)
    vocabulary.update(visual)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", SPECIAL["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(visual),
        **settings,
    )


def tiny_processor(chat_template: str | None = None) -> LlavaProcessor:
    """The processor that fits ``tiny.tiny_model()``."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
        tokenizer=tiny_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )


def save_checkpoint(folder: Path) -> Path:
    """Write model and processor into ``folder``."""
    tiny.tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def save_picture(path: Path, width: int = 120, height: int = 100) -> Path:
    """Write a bright picture in which every region differs."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(120, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path
