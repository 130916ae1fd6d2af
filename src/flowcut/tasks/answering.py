"""Answers to all questions about one picture, which is encoded once where the method allows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..loading import LoadedModel
from ..methods import Method
from ..models import find_parts
from ..prompting import many_inputs
from ..stages.cache import repeated
from ..stages.cache_argument import CACHE


@torch.inference_mode()
def answer_all(
    loaded: LoadedModel,
    image: Image.Image,
    questions: Sequence[str],
    *,
    batch_size: int,
    max_new_tokens: int,
    share_prefix: bool,
) -> list[str]:
    """Greedy answers to questions about one picture, by the model as it is or with what is attached to it.

    Args:
        loaded: the model and its processor.
        image: an RGB picture.
        questions: what is asked; every question is a prompt of its own.
        batch_size: at most so many questions in one pass. It does not change the answers.
        max_new_tokens: at most so many tokens per answer.
        share_prefix: whether the cache of the picture and what stands in front of it is computed once and reused for
            all questions, which is right where nothing in it depends on the question, see :func:`may_share`.

    Raises:
        ValueError: there are no questions, or a number is below 1.
    """
    if not questions or batch_size < 1 or max_new_tokens < 1:
        raise ValueError("answer_all needs at least one question, batch_size >= 1 and max_new_tokens >= 1.")
    inputs = many_inputs(loaded.processor, image, questions).to(loaded.device, dtype=loaded.dtype)
    prompts = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    shared = shared_length(prompts, image_tokens(loaded)) if share_prefix else 0
    chunks = range(0, len(prompts), batch_size)
    if not shared:
        answers = [
            text
            for first in chunks
            for text in plain_answers(loaded, image, questions[first : first + batch_size], max_new_tokens)
        ]
    else:
        model: Any = loaded.model
        pixels = {"pixel_values": inputs["pixel_values"][:1]}
        prefix = prompts[0][None, :shared]
        output = model(input_ids=prefix, attention_mask=torch.ones_like(prefix), use_cache=True, **pixels)
        rests = [prompt[shared:] for prompt in prompts]
        answers = [
            text
            for first in chunks
            for text in continued_answers(
                loaded, output[CACHE], shared, rests[first : first + batch_size], max_new_tokens
            )
        ]
    return answers


def may_share(loaded: LoadedModel, method: Method | None) -> bool:
    """Whether what the cache holds of the picture is the same whatever is asked about it."""
    _, parts = find_parts(loaded.model)
    if parts.grid_positions or len(parts.placeholders) != 1 or parts.packer is not None:
        return False
    return method is None or not (method.reads_text or method.decoder_layers(parts.second_cut))


def image_tokens(loaded: LoadedModel) -> list[int]:
    """The ids that stand for visual tokens."""
    _, parts = find_parts(loaded.model)
    return list(parts.placeholders.values())


def shared_length(prompts: Sequence[Tensor], placeholders: Sequence[int]) -> int:
    """Columns up to the last visual token, where all prompts agree on them; else 0."""
    lengths = {int(is_one_of(prompt, placeholders).nonzero()[-1]) + 1 for prompt in prompts}
    if len(lengths) > 1:
        return 0
    length = lengths.pop()
    agree = all(torch.equal(prompt[:length], prompts[0][:length]) for prompt in prompts)
    return length if agree and all(len(prompt) > length for prompt in prompts) else 0


def is_one_of(ids: Tensor, wanted: Sequence[int]) -> Tensor:
    """Boolean, of the shape of ``ids``."""
    return torch.isin(ids, torch.tensor(list(wanted), device=ids.device))


def plain_answers(loaded: LoadedModel, image: Image.Image, questions: Sequence[str], max_new_tokens: int) -> list[str]:
    """Whole prompts in one batch."""
    inputs = many_inputs(loaded.processor, image, questions).to(loaded.device, dtype=loaded.dtype)
    model: Any = loaded.model
    output = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
    return decoded(loaded, list(output[:, inputs["input_ids"].shape[1] :]))


def continued_answers(
    loaded: LoadedModel, cache: Any, shared: int, rests: Sequence[Tensor], max_new_tokens: int
) -> list[str]:
    """Answers to prompts that go on behind ``shared`` cached columns; ``rests`` is what they go on with."""
    model: Any = loaded.model
    ends = end_tokens(model)
    lengths = torch.tensor([len(rest) for rest in rests], device=loaded.device)
    tokens = torch.nn.utils.rnn.pad_sequence(list(rests), batch_first=True, padding_value=min(ends, default=0))
    columns = torch.arange(tokens.shape[1], device=loaded.device)
    real = (columns[None] < lengths[:, None]).long()
    mask = torch.cat([real.new_ones(len(rests), shared), real], dim=1)
    places = (shared + columns)[None].expand(len(rests), -1)
    copied = repeated(cache, len(rests))
    rows = torch.arange(len(rests), device=loaded.device)
    last = lengths - 1
    done = torch.zeros(len(rests), dtype=torch.bool, device=loaded.device)
    new: list[Tensor] = []
    for step in range(max_new_tokens):
        output = model(input_ids=tokens, attention_mask=mask, position_ids=places, use_cache=True, **{CACHE: copied})
        chosen = output.logits[rows, last].argmax(dim=-1)
        new.append(chosen.masked_fill(done, min(ends, default=0)))
        done = done | is_one_of(chosen, ends)
        if bool(done.all()):
            break
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rests), 1)], dim=1)
        places = (shared + lengths + step)[:, None]
        last = torch.zeros_like(last)
    generated = torch.stack(new, dim=1)
    return decoded(loaded, [cut_at_end(row, ends) for row in generated])


def end_tokens(model: Any) -> list[int]:
    """The ids that end an answer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return []
    return list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]


def cut_at_end(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    """What stands before the first end token."""
    found = is_one_of(tokens, ends).nonzero()
    return tokens[: int(found[0])] if len(found) else tokens


def decoded(loaded: LoadedModel, rows: Sequence[Tensor]) -> list[str]:
    """The texts of generated tokens."""
    return [loaded.processor.decode(row, skip_special_tokens=True).strip() for row in rows]
