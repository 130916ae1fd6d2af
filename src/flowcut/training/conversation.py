"""A conversation as the model reads it: token ids by its own chat template, labels on the answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.conversations import CHAT_TEMPLATE
from ..errors import FlowCutError
from ..inputs.prompting import adds_special_tokens
from .samples import BadSampleError, Sample, Turn

IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation with one mark for each picture.

    Attributes:
        ids: its tokens.
        answered: for each, whether it belongs to an answer.
        marks: places of the tokens that stand for a picture or a video.
    """

    ids: list[int]
    answered: list[bool]
    marks: list[int]


class Conversations:
    """Writes conversations for one model.

    Args:
        processor: the model's; its tokenizer must be a fast one, which knows where in the text a token stands.
        template: a Jinja template in the place of the processor's own.

    Raises:
        FlowCutError: the tokenizer is a slow one.
    """

    def __init__(self, processor: Any, template: str | None = None) -> None:
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        # As everywhere in flowcut: a processor without a template is taken for LLaVA-1.5's.
        self.template = template or getattr(processor, "chat_template", None) or CHAT_TEMPLATE
        if not getattr(self.tokenizer, "is_fast", False):
            raise FlowCutError(
                f"{type(self.tokenizer).__name__} does not tell where in the text its tokens stand, so that answers "
                "cannot be found. Use a fast tokenizer (one with a tokenizer.json)."
            )
        names = ("image_token_id", "video_token_id")
        self.placeholders = {one for name in names if (one := getattr(processor, name, None)) is not None}
        if not self.placeholders:
            raise FlowCutError(
                f"{type(processor).__name__} does not say which token stands for a picture (image_token_id), so that a "
                "conversation's pictures cannot be placed."
            )

    def write(self, turns: Sequence[Turn], *, generation: bool = False) -> str:
        """The text by the template.

        Args:
            turns: the conversation.
            generation: whether an answer shall follow.
        """
        messages = [{"role": turn.role, "content": [dict(part) for part in turn.content]} for turn in turns]
        text: str = self.processor.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=generation
        )
        return text

    def render(self, sample: Sample) -> Rendered:
        """The tokens of a conversation, its pictures not yet expanded.

        Raises:
            BadSampleError: the template does not keep what it has written when turns follow, so that answers cannot be
                told apart.
        """
        text = self.write(sample.turns)
        spans = []
        for number, turn in enumerate(sample.turns):
            if turn.role != "assistant":
                continue
            before = self.write(sample.turns[:number], generation=True)
            until = self.write(sample.turns[: number + 1])
            if not (until.startswith(before) and text.startswith(until)):
                raise BadSampleError(
                    "a chat template that rewrites earlier turns: answers cannot be told apart; give data.chat_template"
                )
            spans.append((len(before), len(until.rstrip())))
        encoded = self.tokenizer(
            text, add_special_tokens=adds_special_tokens(self.processor, text), return_offsets_mapping=True
        )
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        answered = [
            any(begin < stop and start < end for start, stop in spans) and end > begin for begin, end in offsets
        ]
        marks = [place for place, token in enumerate(ids) if token in self.placeholders]
        wanted = len(sample.pictures) + len(sample.videos)
        if len(marks) != wanted:
            raise BadSampleError(f"{len(marks)} places for its {wanted} pictures in the chat template's text")
        return Rendered(ids, answered, marks)

    def encode(self, sample: Sample, frames: int) -> dict[str, Tensor]:
        """What the model takes of one sample: its tensors with a batch dimension of one, and labels.

        Raises:
            BadSampleError: see :meth:`render`, or the processor writes another text than the template did.
            ValueError, OSError: a picture cannot be read.
        """
        rendered = self.render(sample)
        text = self.write(sample.turns)
        options: dict[str, Any] = {"add_special_tokens": adds_special_tokens(self.processor, text)}
        if sample.pictures:
            options["images"] = [[sample.store.picture(name) for name in sample.pictures]]
        if sample.videos:
            clips = [sample.store.clip(name, frames) for name in sample.videos]
            options["videos"] = [clip.frames for clip in clips]
            options["video_metadata"] = [clip.metadata for clip in clips]
            options["do_sample_frames"] = False
        inputs = dict(self.processor(text=[text], return_tensors="pt", **options))
        ids: Tensor = inputs["input_ids"]
        learned = torch.tensor(expand(rendered, ids[0].tolist()))
        return {**inputs, "labels": ids.masked_fill(~learned, IGNORED)}


def expand(rendered: Rendered, ids: Sequence[int]) -> list[bool]:
    """Which of the expanded tokens belong to an answer.

    The processor writes any number of tokens in the place of a picture's mark, and leaves the text between two marks
    as it is.

    Args:
        rendered: the text with one mark for each picture.
        ids: the same with its pictures expanded.

    Raises:
        BadSampleError: the text between the marks is not found again.
    """
    learned = [False] * len(ids)
    place = 0
    bounds = [-1, *rendered.marks, len(rendered.ids)]
    for number, (before, behind) in enumerate(pairwise(bounds)):
        piece = rendered.ids[before + 1 : behind]
        start = place
        if behind == len(rendered.ids):
            start = len(ids) - len(piece)
        elif number:
            start = next(
                (at for at in range(place + 1, len(ids)) if list(ids[at : at + len(piece)]) == piece), len(ids)
            )
        if start < place or list(ids[start : start + len(piece)]) != piece:
            raise BadSampleError("pictures that the processor writes in an unknown way")
        learned[start : start + len(piece)] = rendered.answered[before + 1 : behind]
        place = start + len(piece)
    return learned
