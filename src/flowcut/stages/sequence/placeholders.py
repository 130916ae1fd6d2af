"""The tokens in a prompt that stand for an image's visual tokens."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import NotAppliedError
from ...trace import ImageTrace
from ..projector.features import TRACES


def find_placeholders(
    embedding: nn.Module, token: int, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> Tensor:
    """Positions ``[P, 2]`` (row, column) of the placeholder ``token``, in reading order.

    Args:
        embedding: the model's input embedding, to recognise placeholders that are embedded already.
        token: token id of the placeholder.
        input_ids: ``[B, L]``, or ``None`` where ``inputs_embeds`` ``[B, L, width]`` is given.
    """
    if input_ids is not None:
        return (input_ids == token).nonzero()
    assert inputs_embeds is not None
    row: Tensor = embedding(torch.tensor(token, device=inputs_embeds.device))
    matches: Tensor = (inputs_embeds == row).all(dim=-1)
    return matches.nonzero()


def image_traces(outputs: Any, modality: str) -> list[ImageTrace]:
    """The traces that the vision stage left on a tower's output.

    Raises:
        NotAppliedError: there are none, so these features did not pass through the method.
    """
    traces: list[ImageTrace] | None = getattr(outputs, TRACES, None)
    if traces is None:
        raise NotAppliedError(
            f"The {modality} features given to the model were not cut: they were computed before attaching, or by "
            "a replaced vision tower. Pass the pixel values, or features from this model's own "
            f"get_{modality}_features while the method is attached."
        )
    return traces


def check_count(placeholders: Tensor, images: list[ImageTrace], modality: str) -> None:
    """Make sure that prompts and images fit together.

    Raises:
        ValueError: the prompts have more or fewer placeholders than the images need.
    """
    needed = sum(trace.placeholders for trace in images)
    if len(placeholders) != needed:
        raise ValueError(
            f"The prompts have {len(placeholders)} {modality} placeholders, but the {len(images)} {modality}(s) "
            f"given need {needed}. Give one block of placeholders for every {modality} (the processor writes them)."
        )


def mark_kept(
    keep: Tensor, image: Tensor, placeholders: Tensor, images: list[ImageTrace], first_number: int, modality: str
) -> list[int]:
    """Clear ``keep`` at the placeholders of cut tokens, and write each image's number into ``image``.

    Args:
        keep: boolean ``[B, L]``, changed in place.
        image: int64 ``[B, L]``, changed in place; images are numbered from ``first_number``.
        placeholders: :func:`find_placeholders`.
        images: what became of the images.
        modality: for the messages.

    Returns:
        The row of every image.

    Raises:
        ValueError: the prompts have more or fewer placeholders than the images need.
    """
    check_count(placeholders, images, modality)
    lengths = [trace.placeholders for trace in images]
    rows, columns = placeholders.unbind(dim=1)
    keep[rows, columns] = torch.cat([trace.placeholder_kept.to(keep.device) for trace in images])
    numbers = np.repeat(np.arange(first_number, first_number + len(images)), lengths)
    image[rows, columns] = torch.from_numpy(numbers).to(image.device)
    row_of: list[int] = rows.tolist()
    ends = list(accumulate(lengths))
    first = [row_of[end - length] for end, length in zip(ends, lengths, strict=True)]
    if first != [row_of[end - 1] for end in ends]:
        raise ValueError(
            f"The placeholders of one {modality} are spread over two samples. Every sample needs whole blocks: "
            f"{[trace.placeholders for trace in images]} placeholders, in this order."
        )
    return first
