"""Frames of a video file, read with PyAV."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
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

    Distances are in time where the frames of the file are not equally long (there may then be fewer frames, none
    twice); the metadata then counts in frames of the mean length, so that the times which a model is told are those of
    the file. Frames are turned upright where the camera said so. Of a file that breaks off, a ``UserWarning`` says
    where, and what lies in front of that is read.

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
    from transformers.video_utils import VideoMetadata

    try:
        times, rate = frame_times(path)
        chosen = evenly(times, frames)
        pictures, read = decoded(path, chosen)
        if not read:
            raise ValueError("its first frame is broken")
        if len(pictures) < len(chosen):
            warnings.warn(f"{path} breaks off after {read} of {len(times)} frames.", stacklevel=2)
            times = times[:read]
            chosen = evenly(times, frames)
            pictures, read = decoded(path, chosen)
    except (av.error.FFmpegError, ValueError) as error:
        raise ValueError(f"{path} is not a video that can be decoded: {error}.") from error
    indices = chosen
    if not regular(times):
        rate = (len(times) - 1) / float(times[-1])
        indices = (times[chosen] * rate).round().astype(int)
    found = np.stack(pictures)
    metadata = VideoMetadata(
        total_num_frames=len(times),
        fps=rate,
        duration=len(times) / rate,
        video_backend="pyav",
        height=found.shape[1],
        width=found.shape[2],
        frames_indices=indices.tolist(),
    )
    return Clip(found, metadata)


def frame_times(path: str | Path) -> tuple[NDArray[np.float64], float]:
    """When each frame of a video is shown, in seconds from the first one on, and its frames per second.

    Where the file does not say it for each, they are taken as equally long.

    Raises:
        ValueError: there is no video in the file, or there are no frames in it.
    """
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it holds no video")
        stream = container.streams.video[0]
        # Some formats do not say how many frames they hold.
        shown = [packet.pts for packet in container.demux(stream) if packet.size]
        rate, unit = float(stream.average_rate or 25), float(stream.time_base or 0)
    if not shown:
        raise ValueError("it has no frames")
    known = sorted(one for one in shown if one is not None)
    if len(known) < len(shown) or known[0] == known[-1] or not unit:
        return np.arange(len(shown)) / rate, rate
    return (np.array(known) - known[0]) * unit, rate


def regular(times: NDArray[np.float64]) -> bool:
    """Whether frames are equally long, to less than one frame."""
    if len(times) < 3:
        return True
    length = times[-1] / (len(times) - 1)
    return bool(np.abs(times - length * np.arange(len(times))).max() < length)


def evenly(times: NDArray[np.float64], frames: int) -> NDArray[np.int_]:
    """Numbers of at most ``frames`` frames at equal distances, ascending: in number if they are equally long, else in
    time."""
    total = len(times)
    if regular(times) or frames >= total:
        return np.linspace(0, total - 1, min(frames, total)).round().astype(int)
    wanted = np.linspace(0.0, times[-1], frames)
    return np.unique(np.abs(times[None] - wanted[:, None]).argmin(1))


def decoded(path: str | Path, chosen: Sequence[int] | NDArray[np.int_]) -> tuple[list[NDArray[np.uint8]], int]:
    """The chosen frames, upright, up to the first broken one, and how many were read.

    Args:
        path: a video.
        chosen: numbers of frames, ascending.
    """
    import av

    pictures: list[NDArray[np.uint8]] = []
    wanted, read = set(map(int, chosen)), 0
    with av.open(str(path)) as container, suppress(av.error.FFmpegError):
        for frame in container.decode(video=0):
            if read in wanted:
                pictures.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
            read += 1
            if len(pictures) == len(wanted):
                break
    return pictures, read
