"""One question about one image, answered by several methods on equal terms: same model, prompt and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image
from torch import Tensor

from ..attaching import attach, detach
from ..checkpoints.loading import LoadedModel
from ..errors import FlowCutError, NotAppliedError, UnsupportedModelError
from ..inputs.clips import Clip
from ..methods import Method
from ..models import find_parts
from ..trace import ImageTrace, Trace
from .run import Outcome, generate, outcome, prepared, token_numbers
from .timing import Seconds


@dataclass(frozen=True)
class Compared:
    """What one method did.

    Attributes:
        method: the method.
        outcome: its answer and its costs; ``None`` where it refused the model.
        refusal: why it did, else empty.
        kept: patches of the first image that the last decoder layer still saw, into ``grid``.
        grid: (height, width) of its patches, or (tiles, height, width).
    """

    method: Method
    outcome: Outcome | None
    refusal: str
    kept: Tensor | None = None
    grid: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return {
            "method": self.method.name,
            "settings": {field.name: getattr(self.method, field.name) for field in fields(self.method)},
            "outcome": None if self.outcome is None else self.outcome.as_dict(),
            "refusal": self.refusal,
            "kept": None if self.kept is None else self.kept.tolist(),
            "grid": list(self.grid),
        }


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found out.

    Attributes:
        question: as it was asked.
        uncut: the model as it is.
        rows: one entry for every method, in the order they were given.
        image: what happened to the first image under the last method that ran.
        pixel_values: see :class:`~flowcut.measure.run.RunResult`.
        repeats: measured runs behind the medians.
    """

    question: str
    uncut: Outcome
    rows: list[Compared]
    image: ImageTrace
    pixel_values: Tensor
    repeats: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return {
            "question": self.question,
            "repeats": self.repeats,
            "uncut": self.uncut.as_dict(),
            "rows": [row.as_dict() for row in self.rows],
        }


def compare(
    loaded: LoadedModel,
    methods: Sequence[Method],
    image: Image.Image | Clip,
    question: str,
    *,
    max_new_tokens: int = 64,
    repeats: int = 3,
) -> Comparison:
    """Answer a question about an image uncut and with every method, on the same model object.

    Everything runs once to warm up, then ``repeats`` times in turns, so that a machine that slows down slows all.

    Args:
        loaded: the model and its processor. A method that is attached to it already is taken off.
        methods: what to compare. One that refuses the model becomes a row with its reason.
        image: an RGB picture, or the frames of a video.
        question: what is asked.
        max_new_tokens: at most so many tokens per answer.
        repeats: measured runs of each.

    Raises:
        UnsupportedModelError: the model is not supported, or every method refuses it.
        ValueError: no method, or an argument below 1.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("repeats", repeats), ("methods", len(methods))):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    detach(loaded.model)
    _, parts = find_parts(loaded.model)
    inputs, pixel_values = prepared(loaded, parts, image, question)

    def answer(method: Method) -> tuple[Tensor, Seconds, Trace]:
        with attach(loaded.model, method) as handle:
            tokens, seconds = generate(loaded, parts, inputs, max_new_tokens)
            return tokens, seconds, handle.trace

    uncut_tokens, _ = generate(loaded, parts, inputs, max_new_tokens)
    answers: dict[int, tuple[Tensor, Trace]] = {}
    refusals: dict[int, str] = {}
    for number, method in enumerate(methods):
        try:
            tokens, _, trace = answer(method)
        except NotAppliedError:
            raise
        except (FlowCutError, ValueError) as error:
            refusals[number] = " ".join(str(error).split())
        else:
            answers[number] = (tokens, trace)
    if not answers:
        raise UnsupportedModelError(f"No method can run on this model. {methods[0].name}: {refusals[0]}")
    uncut_seconds: list[Seconds] = []
    seconds: dict[int, list[Seconds]] = {number: [] for number in answers}
    for _ in range(repeats):
        uncut_seconds.append(generate(loaded, parts, inputs, max_new_tokens)[1])
        for number, runs in seconds.items():
            runs.append(answer(methods[number])[1])

    rows, first, uncut_numbers = [], None, None
    for number, method in enumerate(methods):
        if number in refusals:
            rows.append(Compared(method, None, refusals[number]))
            continue
        tokens, trace = answers[number]
        if trace.sequence is None or not trace.images:
            raise NotAppliedError("No image went through the model, so there was nothing to cut. Check the processor.")
        first = trace.images[0]
        uncut_numbers, numbers = token_numbers(trace.images, trace.sequence)
        kept = trace.sequence.patches_at_the_end(0).cpu()
        rows.append(Compared(method, outcome(loaded, tokens, seconds[number], numbers), "", kept, first.grid))
    assert first is not None and uncut_numbers is not None
    uncut = outcome(loaded, uncut_tokens, uncut_seconds, uncut_numbers)
    return Comparison(question, uncut, rows, first, pixel_values, repeats)
