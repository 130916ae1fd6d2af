"""Frames of a video file, read with transformers' own loader (PyAV)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FlowCutError
from .files import check_file

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg")
FRAMES = 8


@dataclass(frozen=True)
class Clip:
    """Frames of a video.

    Attributes:
        frames: ``[frames, height, width, 3]``, uint8, RGB.
        metadata: transformers' ``VideoMetadata``: which frames of the file they are, and its frame rate.
    """

    frames: NDArray[np.uint8]
    metadata: Any


def is_video(path: str | Path) -> bool:
    """Whether a file's name says that it is a video."""
    return Path(path).suffix.lower() in SUFFIXES


def load_clip(path: str | Path, frames: int = FRAMES) -> Clip:
    """Read ``frames`` frames of a video file, at equal distances from the first to the last; all, if it has fewer.

    Raises:
        FileNotFoundError: there is no such file.
        FlowCutError: PyAV is not installed.
        ValueError: ``frames`` is below 1, the path is a web address or a pipe, or the file holds no video that can be
            decoded.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}.")
    check_file(path, "video")
    try:
        import av
    except ImportError as error:
        raise FlowCutError("Reading videos needs PyAV: pip install 'flowcut[video]'.") from error
    from transformers.video_utils import load_video

    try:
        with av.open(str(path)) as container:
            # Some formats do not say how many frames they hold.
            total = sum(packet.size > 0 for packet in container.demux(video=0))
        if not total:
            raise ValueError("it has no frames")
        chosen = np.linspace(0, total - 1, min(frames, total)).round().astype(int)
        read: Any = load_video
        pictures, metadata = read(str(path), backend="pyav", sample_indices_fn=lambda metadata, **_: chosen)
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is not a video that can be decoded: {error}.") from error
    metadata.total_num_frames = total
    metadata.frames_indices = chosen
    return Clip(np.asarray(pictures), metadata)
