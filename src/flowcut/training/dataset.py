"""Samples as a Trainer takes them: tensors by number, and how many tokens of each the language model will read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from ..methods import Method
from .collating import BAD
from .conversation import Conversations
from .samples import BadSampleError, BadSamples, Sample

UNREADABLE = (BadSampleError, ValueError, OSError)


class SampleSet(Dataset[dict[str, Any]]):
    """The good samples of a run.

    What can be known without decoding pictures is checked when it is made. A picture that turns out broken later is
    counted then, and the next sample that can be read takes its place, the same in every run; what takes it says so
    under :data:`~flowcut.training.collating.BAD`, since it may be read in a process of its own.

    Args:
        samples: as read.
        writer: writes them for the model.
        method: what decides how many visual tokens are kept; ``None`` for all.
        bad: where bad samples are counted.
        max_length: most tokens of a sample, text and kept visual ones.
        frames: frames taken of a video.
        progress: called after each sample that was looked at.

    Attributes:
        lengths: of every sample, text and kept visual tokens; those of pictures that the processor cannot count
            without seeing them, and of videos, are estimated.

    Raises:
        ValueError: no sample is left, or a bad one ends the run.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        writer: Conversations,
        method: Method | None,
        bad: BadSamples,
        *,
        max_length: int | None = None,
        frames: int = 8,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.writer, self.method, self.bad, self.frames = writer, method, bad, frames
        self.samples: list[Sample] = []
        self.lengths: list[int] = []
        for sample in samples:
            try:
                length = self._length(sample)
                if max_length is not None and length > max_length:
                    raise BadSampleError(f"too many tokens: {length}, of which at most {max_length} are allowed")
                self.samples.append(sample)
                self.lengths.append(length)
            except UNREADABLE as error:
                bad.add(sample.name, reason_of(error))
            progress()
        if not self.samples:
            told = f" All {len(bad)} are bad: {bad}." if len(bad) else ""
            raise ValueError(f"There is no sample to train on.{told}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        found: dict[str, str] = {}
        for step in range(len(self.samples)):
            sample = self.samples[(number + step) % len(self.samples)]
            try:
                row: dict[str, Any] = self.writer.encode(sample, self.frames)
                return {**row, BAD: found} if found else row
            except UNREADABLE as error:
                found[sample.name] = reason_of(error)
                self.bad.add(sample.name, found[sample.name])
        raise ValueError(f"None of the samples can be read: {self.bad}.")

    def _length(self, sample: Sample) -> int:
        text = self.writer.render(sample)
        return len(text.ids) - len(text.marks) + sum(map(self._kept, visual_tokens(self.writer.processor, sample)))

    def _kept(self, available: int) -> int:
        return available if self.method is None else self.method.tokens_to_keep(available)


def visual_tokens(processor: Any, sample: Sample) -> list[int]:
    """Visual tokens of every picture of a sample, uncut, without decoding it; of a video as many as of a picture.

    Raises:
        ValueError, OSError: a picture's header cannot be read.
    """
    sizes = [sample.store.size(name) for name in sample.pictures]
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    if count is None:
        return [0] * (len(sizes) + len(sample.videos))
    # Of a video neither size nor length is known before it is decoded; a square of usual size stands for it.
    told = count(image_sizes=[list(size) for size in sizes] + [[336, 336]] * len(sample.videos))
    return [int(number) for number in told["num_image_tokens"] or ()]


def reason_of(error: Exception) -> str:
    """Why a sample is bad, kind first."""
    if isinstance(error, BadSampleError):
        return str(error)
    return f"a broken picture: {' '.join(str(error).split())}"
