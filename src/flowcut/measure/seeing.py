"""One picture or clip looked at: the flow in the uncut model, and what FlowCut then cuts of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..attaching import attach, detach
from ..checkpoints.loading import LoadedModel
from ..errors import NotAppliedError
from ..inputs.clips import Clip
from ..methods import FlowCut
from ..models import find_parts
from ..observing import observe
from ..trace import ImageFlow, ImageTrace
from .run import prepared

QUESTION = "What is shown here?"
"""What is asked where the user asks nothing."""


@dataclass(frozen=True)
class Sight:
    """What :func:`see` found out about one picture, or one video.

    Attributes:
        question: what was asked.
        method: FlowCut with its budget.
        flow: what was seen in the uncut model.
        trace: what the method cut.
        pixel_values: see :class:`~flowcut.measure.run.RunResult`.
    """

    question: str
    method: FlowCut
    flow: ImageFlow
    trace: ImageTrace
    pixel_values: Tensor


@torch.inference_mode()
def see(
    loaded: LoadedModel,
    visual: Image.Image | Clip,
    method: FlowCut,
    question: str = QUESTION,
    *,
    to_global: bool = True,
) -> Sight:
    """Look at a picture with the uncut model, then cut it; each takes one pass.

    Args:
        loaded: the model and its processor. A method that is attached to it already is taken off.
        visual: an RGB picture, or the frames of a video.
        method: FlowCut with a budget.
        question: what is asked.
        to_global: see :func:`~flowcut.observe`.

    Raises:
        UnsupportedModelError, ValueError: the model's tower cannot be cut, or the budget does not fit.
    """
    detach(loaded.model)
    model: Any = loaded.model
    inputs, pixel_values = prepared(loaded, find_parts(model)[1], visual, question)
    options = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}
    with observe(model, to_global=to_global) as flow:
        model.generate(**inputs, **options)
    with attach(model, method) as handle:
        model.generate(**inputs, **options)
        images = handle.trace.images
    if not flow.images or not images:
        raise NotAppliedError("No image went through the model, so there was nothing to see. Check the processor.")
    return Sight(question, method, flow.images[0], images[0], pixel_values)
