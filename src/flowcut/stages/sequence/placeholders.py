"""The tokens in a prompt that stand for an image's visual tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import NotAppliedError
from ...trace import ImageTrace
from ..projector.features import TRACES


def are_placeholders(
    embedding: nn.Module, token: int, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> Tensor:
    """Boolean ``[B, L]``: which columns hold the placeholder ``token``.

    Args:
        embedding: the model's input embedding, to recognise placeholders that are embedded already.
        token: token id of the placeholder.
        input_ids: ``[B, L]``, or ``None`` where ``inputs_embeds`` ``[B, L, width]`` is given.
    """
    if input_ids is not None:
        return input_ids == token
    assert inputs_embeds is not None
    row: Tensor = embedding(torch.tensor(token, device=inputs_embeds.device))
    matches: Tensor = (inputs_embeds == row).all(dim=-1)
    return matches


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


def rows_of_images(per_row: Sequence[int], images: Sequence[ImageTrace], modality: str) -> list[int]:
    """The row of every image.

    Args:
        per_row: how many placeholders every row has.
        images: what became of the images, in reading order.
        modality: for the messages.

    Raises:
        ValueError: the prompts have more or fewer placeholders than the images need, or an image's lie in two rows.
    """
    needed = [trace.placeholders for trace in images]
    if sum(per_row) != sum(needed):
        raise ValueError(
            f"The prompts have {sum(per_row)} {modality} placeholders, but the {len(images)} {modality}(s) given "
            f"need {sum(needed)}. Give one block of placeholders for every {modality} (the processor writes them)."
        )
    ends_of_rows = list(accumulate(per_row))
    ends = list(accumulate(needed))
    first = [bisect_right(ends_of_rows, end - count) for end, count in zip(ends, needed, strict=True)]
    if first != [bisect_right(ends_of_rows, end - 1) for end in ends]:
        raise ValueError(
            f"The placeholders of one {modality} are spread over two samples. Every sample needs whole blocks: "
            f"{needed} placeholders, in this order."
        )
    return first


class Placeholders:
    """The placeholders of one modality in a call.

    Args:
        places: boolean ``[B, L]``, where they stand.
        rows: the row of every image.
    """

    def __init__(self, places: Tensor, rows: list[int]) -> None:
        self.places = places
        self.rows = rows

    def keep(self, keep: Tensor, images: Sequence[ImageTrace]) -> None:
        """Clear ``keep``, boolean ``[B, L]``, at the placeholders of cut tokens."""
        if images:
            kept = [trace.placeholder_kept.to(keep.device) for trace in images]
            keep.masked_scatter_(self.places, kept[0] if len(kept) == 1 else torch.cat(kept))

    def write_numbers(self, image: Tensor, images: Sequence[ImageTrace], first: int) -> None:
        """Write the number of each image into ``image``, int64 ``[B, L]``; they are counted from ``first``."""
        if images:
            lengths = [trace.placeholders for trace in images]
            numbers = np.repeat(np.arange(first, first + len(images)), lengths)
            image.masked_scatter_(self.places, torch.from_numpy(numbers).to(image.device))
