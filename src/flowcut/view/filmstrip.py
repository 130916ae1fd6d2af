"""The overlay of a video: its frames as the model saw them, with the patches that stayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..inputs.clips import Clip
from ..trace import ImageTrace
from .overlay import PATCH_PIXELS, Panel, Pixels, check_path, draw_panels, kept_rows, restore_pixels, seen_pixels


def seen_frames(pixel_values: Tensor, video_processor: Any, clip: Clip, trace: ImageTrace) -> list[Pixels]:
    """The frames of a video as the model saw them, one for every time step of ``trace.grid``.

    Args:
        pixel_values: ``[videos, frames, 3, height, width]``, or rows of flattened patches (Qwen2-VL), which show whole
            frames, only scaled; there two frames, of which this takes the first, make one time step.
        video_processor: the processor's.
        clip: the frames themselves.
        trace: what happened to the video.

    Returns:
        Frames ``[height, width, 3]`` in [0, 1].
    """
    if pixel_values.dim() == 5:
        return [restore_pixels(frame, video_processor) for frame in pixel_values[0]]
    times, height, width = trace.grid
    size = (width * PATCH_PIXELS, height * PATCH_PIXELS)
    first = range(0, len(clip.frames), math.ceil(len(clip.frames) / times))
    pictures = (Image.fromarray(clip.frames[number]).resize(size) for number in first)
    return [np.asarray(picture, dtype=np.float32) / np.float32(255.0) for picture in pictures]


def seen_rows(pixel_values: Tensor, processor: Any, visual: Image.Image | Clip, trace: ImageTrace) -> list[Pixels]:
    """A picture as the model saw it, alone, or the frames of a clip.

    Args:
        pixel_values: see :func:`~flowcut.view.overlay.seen_pixels` and :func:`seen_frames`.
        processor: the model's.
        visual: the picture or the clip itself.
        trace: what happened to it.
    """
    if isinstance(visual, Clip):
        return seen_frames(pixel_values, processor.video_processor, visual, trace)
    return [seen_pixels(pixel_values, processor.image_processor, visual, trace)]


def draw_frames(frames: Sequence[Pixels], trace: ImageTrace, header: Sequence[str] = ()) -> Figure:
    """One panel for every frame of a video, with the patches that stayed.

    Args:
        frames: the frames as the model saw them, see :func:`seen_frames`.
        trace: what happened to the video; its grid is (time, height, width).
        header: texts above the panels; the first stands out.
    """
    panels: list[Panel] = [
        (f"frame {number} · {int(kept.sum())} of {kept.size} patches", kept)
        for number, kept in enumerate(kept_rows(trace.kept, trace.grid))
    ]
    return draw_panels(frames, trace.grid[1:], panels, header)


def save_frames(path: str | Path, frames: Sequence[Pixels], trace: ImageTrace, header: Sequence[str] = ()) -> None:
    """:func:`draw_frames` into a file; its ending says which format.

    Raises:
        ValueError, FileNotFoundError: see :func:`~flowcut.view.overlay.check_path`.
    """
    check_path(path)
    draw_frames(frames, trace, header).savefig(path)
