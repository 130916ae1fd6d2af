"""A report of a tiny model, made once, for the tests that read it and those that open it in a browser."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tiny
import tiny_checkpoint
import torch
from PIL import Image

from flowcut.checkpoints.loading import LoadedModel
from flowcut.measure.compare import Comparison, compare
from flowcut.measure.seeing import Sight, see
from flowcut.methods import FlowCut, make_methods
from flowcut.view.flow_report import report_data
from flowcut.view.maps import pictures_of
from flowcut.view.overlay import Pixels


@dataclass(frozen=True)
class Made:
    """What a report is made of, and its data."""

    sight: Sight
    pictures: list[Pixels]
    comparison: Comparison
    data: dict[str, Any]


@cache
def of_a_picture() -> Made:
    """Three methods at two budgets."""
    model: Any = tiny.tiny_model()
    loaded = LoadedModel(model, tiny_checkpoint.tiny_processor(), torch.device("cpu"), torch.float32)
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    sight = see(loaded, picture, FlowCut(target_num=9))
    methods = [method for budget in (6, 9) for method in make_methods("flowcut,divprune,random", budget, None)]
    comparison = compare(loaded, methods, picture, "what?", max_new_tokens=2, repeats=1)
    pictures = pictures_of(sight, picture, loaded.processor)
    return Made(sight, pictures, comparison, report_data(sight, pictures, comparison, "tiny", "<noise>.png"))
