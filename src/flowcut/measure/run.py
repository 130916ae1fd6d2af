"""One question about one image or video, answered with and without cutting, and what each cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..attaching import attach, detach
from ..checkpoints.loading import LoadedModel
from ..errors import NotAppliedError, UnsupportedModelError
from ..inputs.clips import Clip
from ..inputs.prompting import model_inputs
from ..methods import Method
from ..models import FAMILIES, ModelParts, find_parts
from ..models.costs import Flops
from ..trace import ImageTrace, SequenceTrace, Trace
from .timing import PhaseTimer, Seconds


@dataclass(frozen=True)
class Outcome:
    """One of the two answers.

    Attributes:
        answer: the text, decoded greedily.
        new_tokens: tokens generated, the end token included.
        seconds: medians over the repeats.
        visual_tokens: visual tokens entering the language model.
        visual_tokens_mean: the same averaged over the decoder's layers.
        kv_entries: key/value entries per decoder layer after prefill, text included.
        flops: of vision tower, projector and prefill.
    """

    answer: str
    new_tokens: int
    seconds: Seconds
    visual_tokens: int
    visual_tokens_mean: float
    kv_entries: int
    flops: Flops

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        flops = {**asdict(self.flops), "total": self.flops.total}
        return {**asdict(self), "flops": flops}


@dataclass(frozen=True)
class RunResult:
    """What :func:`run` found out.

    Attributes:
        question: as it was asked.
        method: the method that cut.
        uncut: the model as it is.
        cut: the same model with the method attached.
        images: what happened to every image (or video) the model saw.
        pixel_values: what the vision tower was given, ``[images, 3, height, width]``,
            ``[images, tiles, 3, height, width]`` or ``[videos, frames, 3, height, width]``, on the CPU, float32.
        repeats: measured runs behind the medians.
    """

    question: str
    method: Method
    uncut: Outcome
    cut: Outcome
    images: list[ImageTrace]
    pixel_values: Tensor
    repeats: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON; ``kept`` are indices into the patch grid, row by row."""
        settings = {field.name: getattr(self.method, field.name) for field in fields(self.method)}
        return {
            "question": self.question,
            "method": {"name": self.method.name, **settings},
            "repeats": self.repeats,
            "uncut": self.uncut.as_dict(),
            "cut": self.cut.as_dict(),
            "images": [
                {
                    "grid": list(image.grid),
                    "patches": image.patches,
                    "visual_tokens": image.visual_tokens,
                    "kept": image.kept.tolist(),
                    "tokens_after_layer": list(image.tokens_after_layer),
                    "kept_after_layer": {
                        str(layer): kept.tolist() for layer, kept in sorted(image.kept_after_layer.items())
                    },
                }
                for image in self.images
            ],
        }


def run(
    loaded: LoadedModel,
    method: Method,
    image: Image.Image | Clip,
    question: str,
    *,
    max_new_tokens: int = 64,
    repeats: int = 3,
    warm_up: bool = True,
) -> RunResult:
    """Answer a question about an image twice with the same model: as it is, and with ``method`` attached.

    Both run once to warm up (see ``warm_up``), then ``repeats`` times in turns, so that a machine that slows down slows
    both.

    Args:
        loaded: the model and its processor. A method that is attached to it already is taken off.
        method: the method to compare with the uncut model.
        image: an RGB picture, or the frames of a video.
        question: what is asked.
        max_new_tokens: at most so many tokens per answer.
        repeats: measured runs of each.
        warm_up: whether the uncut model, too, runs once before it is measured; the method always does.

    Returns:
        Both answers and their costs. The model has nothing attached any more, also if an error was raised.

    Raises:
        UnsupportedModelError, ValueError: the model, the method's budget or an argument does not fit.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    detach(loaded.model)
    _, parts = find_parts(loaded.model)
    inputs, pixel_values = prepared(loaded, parts, image, question)

    def answer_cut() -> tuple[Tensor, Seconds, Trace]:
        with attach(loaded.model, method) as handle:
            tokens, seconds = generate(loaded, parts, inputs, max_new_tokens)
            return tokens, seconds, handle.trace

    cut_tokens, _, trace = answer_cut()
    if warm_up:
        generate(loaded, parts, inputs, max_new_tokens)
    cut_seconds, uncut_seconds = [], []
    for _ in range(repeats):
        uncut_tokens, seconds = generate(loaded, parts, inputs, max_new_tokens)
        uncut_seconds.append(seconds)
        cut_seconds.append(answer_cut()[1])
    if trace.sequence is None or not trace.images:
        raise NotAppliedError("No image went through the model, so there was nothing to cut. Check the processor.")
    uncut_numbers, cut_numbers = token_numbers(trace.images, trace.sequence)
    return RunResult(
        question=question,
        method=method,
        uncut=outcome(loaded, uncut_tokens, uncut_seconds, uncut_numbers),
        cut=outcome(loaded, cut_tokens, cut_seconds, cut_numbers),
        images=trace.images,
        pixel_values=pixel_values,
        repeats=repeats,
    )


def prepared(loaded: LoadedModel, parts: ModelParts, visual: Image.Image | Clip, question: str) -> tuple[Any, Tensor]:
    """What ``generate`` takes, on the model's device, and what the vision tower is given, on the CPU, float32.

    Raises:
        UnsupportedModelError: see :func:`check_videos`.
        ValueError: the question is empty.
    """
    clip = isinstance(visual, Clip)
    if clip:
        check_videos(loaded, parts)
    inputs = model_inputs(loaded.processor, visual, question)
    pixel_values = inputs["pixel_values_videos" if clip else "pixel_values"].float().cpu()
    return inputs.to(loaded.device, dtype=loaded.dtype), pixel_values


def check_videos(loaded: LoadedModel, parts: ModelParts) -> None:
    """Refuse a video where model or processor take none.

    Raises:
        UnsupportedModelError: names the families that do.
    """
    if "video" not in parts.placeholders or getattr(loaded.processor, "video_processor", None) is None:
        takers = ", ".join(family.class_name for family in FAMILIES if family.videos)
        raise UnsupportedModelError(
            f"{type(loaded.model).__name__} with its processor takes no videos. Give a picture, or a model of one of "
            f"these classes: {takers}."
        )


@torch.inference_mode()
def generate(loaded: LoadedModel, parts: ModelParts, inputs: Any, max_new_tokens: int) -> tuple[Tensor, Seconds]:
    """One greedy answer: the new token ids ``[tokens]``, and the seconds it took."""
    model: Any = loaded.model
    with PhaseTimer(parts, loaded.device) as timer:
        output = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
    return output[0, inputs["input_ids"].shape[1] :].cpu(), timer.seconds


def token_numbers(images: list[ImageTrace], sequence: SequenceTrace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Token counts and FLOPs of the one sample: in the uncut model, and with the method."""
    placeholders = sum(image.placeholders for image in images)
    uncut = {
        "visual_tokens": placeholders,
        "visual_tokens_mean": float(placeholders),
        "kv_entries": int(sequence.uncut_attended[0]),
        "flops": sequence.uncut_flops[0],
    }
    cut = {
        "visual_tokens": sequence.visual_tokens[0],
        "visual_tokens_mean": sequence.visual_tokens_mean[0],
        "kv_entries": sequence.kv_entries[0],
        "flops": sequence.flops[0],
    }
    return uncut, cut


def outcome(loaded: LoadedModel, tokens: Tensor, runs: list[Seconds], numbers: dict[str, Any]) -> Outcome:
    """Put one side of the comparison together."""
    answer = loaded.processor.decode(tokens, skip_special_tokens=True).strip()
    return Outcome(answer=answer, new_tokens=len(tokens), seconds=Seconds.median(runs), **numbers)
