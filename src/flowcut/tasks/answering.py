"""Answers to all questions about pictures, each of which is encoded once where the method allows it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..checkpoints.loading import LoadedModel
from ..inputs.prompting import many_inputs
from ..methods import Method
from ..models import find_parts
from ..stages.projector.features import TRACES
from ..stages.sequence.cache import selected
from ..stages.sequence.cache_argument import CACHE
from .decoding import decoded, greedy_answers, is_one_of, padded_left
from .shared_tokens import computed_once


@dataclass(frozen=True)
class Encoded:
    """A picture behind the projector, and what is asked about it.

    Attributes:
        features: what ``get_image_features`` gave.
        prompts: token ids of every question's prompt, padding left out.
    """

    features: Any
    prompts: tuple[Tensor, ...]


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
    chunks = [questions[first : first + batch_size] for first in range(0, len(questions), batch_size)]
    if share_prefix:
        inputs = inputs_on(loaded, image, questions)
        prompts = unpadded(inputs)
        shared = shared_length(prompts, image_tokens(loaded))
        if shared:
            model: Any = loaded.model
            prefix = prompts[0][None, :shared]
            output = model(
                input_ids=prefix,
                attention_mask=torch.ones_like(prefix),
                pixel_values=inputs["pixel_values"][:1],
                use_cache=True,
                logits_to_keep=1,
            )
            rests = [prompt[shared:] for prompt in prompts]
            return continued(loaded, output[CACHE], [0] * len(rests), shared, rests, batch_size, max_new_tokens)
    return [text for chunk in chunks for text in plain_answers(loaded, image, chunk, max_new_tokens)]


@torch.inference_mode()
def answer_encoded(
    loaded: LoadedModel,
    pictures: Sequence[Encoded],
    *,
    batch_size: int,
    max_new_tokens: int,
    share_prefix: bool,
    alike: int = 0,
) -> list[list[str]]:
    """The same for several pictures that were encoded with the attached method, on a model that :func:`may_join`.

    Args:
        pictures: with what is asked about each.
        alike: how many decoder layers hold the same of a picture for every question, see :func:`layers_alike`; of use
            where the prefix is not shared.

    Returns:
        The answers about every picture.
    """
    prompts = [prompt for picture in pictures for prompt in picture.prompts]
    picture_of = [number for number, picture in enumerate(pictures) for _ in picture.prompts]
    shared = shared_length(prompts, image_tokens(loaded))
    if share_prefix and shared:
        model: Any = loaded.model
        prefix = prompts[0][None, :shared].expand(len(pictures), -1)
        output = model(
            input_ids=prefix,
            attention_mask=torch.ones_like(prefix),
            mm_encoder_outputs={"image": joined([picture.features for picture in pictures])},
            use_cache=True,
            logits_to_keep=1,
        )
        rests = [prompt[shared:] for prompt in prompts]
        said = continued(loaded, output[CACHE], picture_of, shared, rests, batch_size, max_new_tokens)
    else:
        said = []
        _, parts = find_parts(loaded.model)
        for first in range(0, len(prompts), batch_size):
            chunk = slice(first, first + batch_size)
            own = picture_of[chunk]
            _, mask = padded_left(prompts[chunk], 0)
            features = joined([pictures[number].features for number in own])
            once = computed_once(parts.decoder_layers[:alike], own, shared, mask) if shared else nullcontext()
            with once:
                said += greedy_answers(
                    loaded,
                    prompts[chunk],
                    max_new_tokens=max_new_tokens,
                    first={"mm_encoder_outputs": {"image": features}},
                )
    ends = list(accumulate(len(picture.prompts) for picture in pictures))
    return [said[end - len(picture.prompts) : end] for picture, end in zip(pictures, ends, strict=True)]


def may_share(loaded: LoadedModel, method: Method | None) -> bool:
    """Whether what the cache holds of the picture is the same whatever is asked about it."""
    _, parts = find_parts(loaded.model)
    if parts.grid_positions or len(parts.placeholders) != 1 or parts.packer is not None:
        return False
    return method is None or not (method.reads_text or method.decoder_layers(parts.second_cut))


def may_join(loaded: LoadedModel) -> bool:
    """Whether a picture's features are one row of its patches, so that those of several pictures make a batch."""
    _, parts = find_parts(loaded.model)
    simple = parts.tower.packing is None and parts.group == 1 and parts.packer is None and not parts.grid_positions
    return simple and list(parts.placeholders) == ["image"] and parts.injection is None


def layers_alike(loaded: LoadedModel, method: Method | None) -> int:
    """How many decoder layers hold the same of a picture whatever is asked, where a method cuts behind them."""
    _, parts = find_parts(loaded.model)
    cuts = () if method is None or method.cuts_projected else method.decoder_layers(parts.second_cut)
    return min(cuts) + 1 if cuts else 0


def encode(loaded: LoadedModel, image: Image.Image, questions: Sequence[str]) -> Encoded:
    """A picture through the tower and whatever is attached to it there, on a model that :func:`may_join`."""
    inputs = inputs_on(loaded, image, questions)
    return Encoded(features_of(loaded, inputs["pixel_values"][:1]), tuple(unpadded(inputs)))


@torch.inference_mode()
def features_of(loaded: LoadedModel, pixel_values: Tensor) -> Any:
    """What the model's base makes of one picture's ``pixel_values`` ``[1, 3, height, width]``."""
    _, parts = find_parts(loaded.model)
    base: Any = parts.base
    return base.get_image_features(pixel_values=pixel_values, return_dict=True)


def joined(features: Sequence[Any]) -> Any:
    """What ``get_image_features`` gave for single pictures, as it would come for all of them."""
    together = copy.copy(features[0])
    together.pooler_output = [row for one in features for row in one.pooler_output]
    if hasattr(features[0], TRACES):
        setattr(together, TRACES, [trace for one in features for trace in getattr(one, TRACES)])
    return together


def inputs_on(loaded: LoadedModel, image: Image.Image, questions: Sequence[str]) -> Any:
    """What the processor makes of questions about a picture, on the model's device."""
    return many_inputs(loaded.processor, image, questions).to(loaded.device, dtype=loaded.dtype)


def unpadded(inputs: Any) -> list[Tensor]:
    """The token ids of every prompt."""
    return [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


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


def plain_answers(loaded: LoadedModel, image: Image.Image, questions: Sequence[str], max_new_tokens: int) -> list[str]:
    """Whole prompts in one batch."""
    inputs = inputs_on(loaded, image, questions)
    model: Any = loaded.model
    output = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
    return decoded(loaded, list(output[:, inputs["input_ids"].shape[1] :]))


def continued(
    loaded: LoadedModel,
    cache: Any,
    rows: Sequence[int],
    shared: int,
    rests: Sequence[Tensor],
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """Answers to prompts that go on with ``rests`` behind ``shared`` columns, those in ``rows`` of the cache."""
    answers = []
    for first in range(0, len(rests), batch_size):
        chunk = slice(first, first + batch_size)
        own = selected(cache, rows[chunk])
        answers += greedy_answers(loaded, rests[chunk], max_new_tokens=max_new_tokens, cache=own, cached=shared)
    return answers
