"""Images that a tower takes as the rows of a batch, filled up to one length, handled as one packed sequence.

Once anything is cut, the patches of all rows stand one behind the other, without the filling, and attend by a mask to
those of their own image. Behind the last layer each stands in its row again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedModelError

PLACED = ("position_embeddings", "position_ids")
"""Arguments of layers that hold something for every patch, ``[rows, length, ...]``."""

MASK = "attention_mask"


class Rows:
    """The rows of one call.

    Args:
        places: int64 ``[patches]``: where every patch stands in the rows laid end to end, image by image.
        counts: patches of every image.
        implementation: the tower's attention implementation.
    """

    def __init__(self, places: Tensor, counts: list[int], implementation: str | None) -> None:
        self.places = places
        self.images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        self.count = len(counts)
        self.implementation = implementation or "eager"
        self.shape: torch.Size | None = None

    def joined(self, hidden: Tensor, arrangement: Tensor | None) -> Tensor:
        """The patches of rows ``[rows, length, width]`` one behind the other, ``[1, patches, width]``."""
        self.shape = hidden.shape
        places = self.places if arrangement is None else self.places.to(arrangement.device)[arrangement]
        return hidden.flatten(0, 1)[places.to(hidden.device)][None]

    def parted(self, whole: Tensor) -> Tensor:
        """The way back, with zeros for the filling."""
        assert self.shape is not None
        rows = whole.new_zeros(self.shape[0] * self.shape[1], whole.shape[-1])
        return rows.index_copy(0, self.places.to(whole.device), whole[0]).reshape(*self.shape[:2], -1)

    def arguments(self, patches: Tensor, given: dict[str, Any], hidden: Tensor) -> dict[str, Any]:
        """What a layer is given for the ``patches`` that are left, numbers of patches in the order of its input."""
        places = self.places.to(patches.device)[patches]
        changed = {name: taken(given[name], places) for name in PLACED if given.get(name) is not None}
        return {**changed, MASK: self._mask(self.images.to(patches.device)[patches], hidden)}

    def _mask(self, images: Tensor, hidden: Tensor) -> Tensor | None:
        """Who may look at whom.

        Raises:
            UnsupportedModelError: several images, and an attention that takes no such mask.
        """
        if self.count == 1:
            return None
        if self.implementation not in ("sdpa", "eager"):
            raise UnsupportedModelError(
                f"Several pictures of one call are cut in this tower with attn_implementation 'sdpa' or 'eager', not "
                f"with {self.implementation!r}. Give one picture in a call, or change it."
            )
        images = images.to(hidden.device)
        own = (images[:, None] == images[None])[None, None]
        if self.implementation == "sdpa":
            return own
        lowest = torch.finfo(hidden.dtype).min
        return torch.zeros(own.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~own, lowest)


def taken(value: Any, places: Tensor) -> Any:
    """The entries of a tensor ``[rows, length, ...]``, or of each of several, as ``[1, patches, ...]``."""
    if isinstance(value, Tensor):
        return value.flatten(0, 1)[places.to(value.device)][None]
    return tuple(taken(part, places) for part in value)
