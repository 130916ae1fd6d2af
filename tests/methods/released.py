"""What the methods' public code chose on random inputs: numbers only, with the seeds they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from flowcut.methods.views import DecoderView

BEFORE, AFTER = 6, 14
"""Text tokens in front of and behind the image in the recorded prompts."""

RELEASED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "methods" / "released.json").read_text())


def generator(seed: int) -> torch.Generator:
    """The generator that the recorded inputs were drawn from."""
    return torch.Generator().manual_seed(seed)


def prompt(drawn: torch.Generator, layer: int, visual: int, uncut: int, target: int) -> DecoderView:
    """A recorded prompt with one image in a decoder layer: queries and keys of 5 heads are drawn, in this order.

    Args:
        layer: the layer that cuts.
        visual: visual tokens alive in it.
        uncut: visual tokens of the uncut prompt.
        target: see :class:`~flowcut.methods.views.DecoderView`.
    """
    columns = BEFORE + visual + AFTER
    query, key = (torch.randn(1, 5, columns, 8, generator=drawn) for _ in range(2))
    image = torch.full((1, columns), -1)
    image[:, BEFORE : BEFORE + visual] = 0
    source = torch.arange(columns)[None].clone()
    source[:, BEFORE + visual :] += uncut - visual
    return DecoderView(
        layer=layer,
        query=query,
        key=key,
        value=key,
        scaling=8**-0.5,
        image=image,
        real=torch.ones(1, columns, dtype=torch.bool),
        last=torch.tensor([columns - 1]),
        source=source,
        targets=(target,),
    )


def kept_of_image(keep: torch.Tensor) -> list[int]:
    """Which of the image's tokens stay in such a prompt; none of the text may be missing."""
    assert bool(keep[0, :BEFORE].all()) and bool(keep[0, -AFTER:].all())
    return [int(token) for token in keep[0, BEFORE:-AFTER].nonzero()[:, 0]]
