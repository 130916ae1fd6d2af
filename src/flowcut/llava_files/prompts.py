"""The tensors of questions, in the prompt that LLaVA's evaluation scripts write or in the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..checkpoints.conversations import SYSTEM
from ..errors import UnsupportedModelError
from ..inputs.clips import Clip
from ..inputs.prompting import TEXT, batch_inputs, build_prompt, model_inputs, text_inputs
from ..tasks.decoding import is_one_of, padded_left

VICUNA = "vicuna_v1"
OWN = "model"
MODES = (VICUNA, OWN)
"""LLaVA's ``--conv-mode``: Vicuna's conversation, or the model's own chat template."""

OF_THE_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def check_mode(processor: Any, mode: str) -> None:
    """Refuse a prompt that the model was not trained with.

    Raises:
        ValueError: the mode is unknown.
        UnsupportedModelError: Vicuna's conversation, for a model whose own is of another form.
    """
    if mode not in MODES:
        raise ValueError(f"The conversation {mode!r} is unknown; known: {', '.join(MODES)}.")
    own = build_prompt(processor, "what", TEXT)
    if mode == VICUNA and not ("USER: " in own and own.rstrip().endswith("ASSISTANT:")):
        raise UnsupportedModelError(
            f"The model's own prompt is not Vicuna's (USER: ... ASSISTANT:) but {own!r}. Ask it in its own: "
            f"--conv-mode {OWN}."
        )


def inputs_of(processor: Any, mode: str, texts: Sequence[str], visuals: Sequence[Image.Image | Clip | None]) -> Any:
    """What ``generate`` takes for questions that all have a picture, or all a video, or none; on the CPU.

    Args:
        processor: a Hugging Face processor with a tokenizer.
        mode: one of ``MODES``.
        texts: what is asked.
        visuals: what it is asked about.

    Raises:
        ValueError: the processor refuses a picture; a video is asked about in Vicuna's conversation, or in a batch.
    """
    images = [one for one in visuals if isinstance(one, Image.Image)]
    clips = [one for one in visuals if isinstance(one, Clip)]
    if clips:
        if mode == VICUNA or len(texts) > 1:
            raise ValueError(f"Questions about videos are asked one by one, in the model's own prompt ({OWN}).")
        return model_inputs(processor, clips[0], texts[0])
    if mode == OWN:
        return batch_inputs(processor, images, texts) if images else text_inputs(processor, texts)
    return vicuna_inputs(processor, texts, images)


def vicuna_inputs(processor: Any, texts: Sequence[str], images: Sequence[Image.Image]) -> Any:
    """Vicuna's conversation, tokenized as LLaVA does: what stands before and behind the picture each for itself."""
    tokenizer = processor.tokenizer
    if images:
        holders = [processor.image_token] * len(images)
        inputs = processor(images=[[one] for one in images], text=holders, return_tensors="pt", padding=True)
        ids = inputs["input_ids"]
        places = is_one_of(ids, [tokenizer.convert_tokens_to_ids(processor.image_token)])
        before = tokenizer(f"{SYSTEM} USER: ").input_ids
        skipped = int(before[:1] == [tokenizer.bos_token_id])
        rows = []
        for text, row, place in zip(texts, ids, places, strict=True):
            behind = tokenizer(f"\n{text} ASSISTANT:").input_ids[skipped:]
            rows.append(ids.new_tensor([*before, *row[place].tolist(), *behind]))
    else:
        inputs = tokenizer([f"{SYSTEM} USER: {text} ASSISTANT:" for text in texts], return_tensors="pt", padding=True)
        rows = [row[mask.bool()] for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    for name in OF_THE_TEXT:
        inputs.pop(name, None)
    filler = tokenizer.pad_token_id
    inputs["input_ids"], inputs["attention_mask"] = padded_left(rows, 0 if filler is None else filler)
    return inputs
