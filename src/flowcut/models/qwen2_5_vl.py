"""Qwen2.5-VL: as Qwen2-VL, but its tower works in windows, and only some of its layers see the whole image.

A token that is kept stays in the window it had in the uncut image; the global token and the scores are those of the
whole image in every layer.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import Qwen2_5_VLModel
from transformers.vision_utils import get_vision_window_index

from .base import Packing
from .qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """The parts of Qwen2-VL, with merge groups sorted by window."""

    name: ClassVar[str] = "qwen2_5_vl"
    class_name: ClassVar[str] = "Qwen2_5_VLForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct")
    towers: ClassVar[tuple[str, ...]] = ("qwen2_5_vl_vision",)

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, Qwen2_5_VLModel)

    def packing(self, visual: Any) -> Packing:
        return Packing(**{**vars(super().packing(visual)), "order": partial(by_window, visual)})


def by_window(visual: Any, grids: Tensor, options: dict[str, Any]) -> Tensor | None:
    """The group at every place of the tower's sequence, int64 ``[groups]``."""
    order: Tensor
    order, _ = get_vision_window_index(
        grids,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
        kwargs=dict(options),
    )
    return order
