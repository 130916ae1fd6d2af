"""One model that several people ask, one after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from ..attaching import attach
from ..checkpoints.loading import LoadedModel
from ..errors import FlowCutError, NotAppliedError
from ..inputs.clips import Clip
from ..measure.run import Outcome, check_videos, generate, outcome, prepared, token_numbers
from ..measure.seeing import Sight, see
from ..methods import FlowCut, Method
from ..models import find_parts
from ..trace import ImageTrace

Visual = Image.Image | Clip

UNKNOWN: dict[str, Any] = {"visual_tokens": 0, "visual_tokens_mean": 0.0, "kv_entries": 0, "flops": None}
"""What is counted, before any method has run: the trace of a cut tells it of the uncut model, too."""


@dataclass(frozen=True)
class Answered:
    """One answer.

    Attributes:
        method: what cut; ``None`` for the model as it is.
        outcome: the answer and its costs, of one run; ``None`` where the method refused.
        refusal: why it did, else empty.
        image: what happened to the picture; ``None`` for the uncut model.
        at_the_end: patches that the last layer of the language model still saw, into ``image.grid``.
    """

    method: Method | None
    outcome: Outcome | None
    refusal: str = ""
    image: ImageTrace | None = None
    at_the_end: Tensor | None = None


@dataclass(frozen=True)
class Answers:
    """What was answered so far to one question.

    Attributes:
        visual: what was asked about.
        question: what was asked.
        pixel_values: what the vision tower was given, on the CPU, float32.
        uncut: the model as it is; what it counts is 0 until a method has run.
        cut: one for every method that has run.
    """

    visual: Visual
    question: str
    pixel_values: Tensor
    uncut: Answered
    cut: tuple[Answered, ...] = ()

    @property
    def image(self) -> ImageTrace | None:
        """What happened to the picture under any of the methods; ``None`` before one has run."""
        return next((one.image for one in self.cut if one.image is not None), None)


class Desk:
    """A model and its processor, which answer one question at a time.

    A method lies on the model only while it answers, under a lock, so that nobody meets another's cut, and whoever
    leaves in the middle leaves the model as it was.

    Attributes:
        loaded: the model and its processor.
        max_new_tokens: longest answer.
    """

    def __init__(self, loaded: LoadedModel, max_new_tokens: int = 32) -> None:
        self.loaded = loaded
        self.max_new_tokens = max_new_tokens
        self._lock = threading.Lock()
        _, self._parts = find_parts(loaded.model)

    def warm_up(self) -> None:
        """Answer once, so that the first visitor's times are not those of a beginning."""
        for _ in self.answers(Image.new("RGB", (336, 336), "grey"), "What is shown?", []):
            pass

    def check(self, visual: Visual) -> None:
        """Refuse a clip where the model takes none.

        Raises:
            UnsupportedModelError: see :func:`~flowcut.measure.run.check_videos`.
        """
        if isinstance(visual, Clip):
            check_videos(self.loaded, self._parts)

    def answers(self, visual: Visual, question: str, methods: Sequence[Method]) -> Iterator[Answers]:
        """The answer of the uncut model, then one more for every method.

        Args:
            visual: an RGB picture, or a clip.
            question: what is asked.
            methods: one that refuses the model, or this budget, is an answer with its reason.

        Raises:
            ValueError: the question is empty.
            UnsupportedModelError: see :meth:`check`.
        """
        inputs, pixel_values = prepared(self.loaded, self._parts, visual, question)
        with self._lock:
            tokens, seconds = generate(self.loaded, self._parts, inputs, self.max_new_tokens)
        uncut = outcome(self.loaded, tokens, [seconds], UNKNOWN)
        now = Answers(visual, question, pixel_values, Answered(None, uncut))
        yield now
        for method in methods:
            numbers, answered = self._cut(inputs, method)
            known = now.uncut if numbers is None else Answered(None, replace(uncut, **numbers))
            now = replace(now, uncut=known, cut=(*now.cut, answered))
            yield now

    def look(self, answers: Answers, target_num: int) -> Sight:
        """How information flows while the picture is encoded, and what FlowCut then cuts.

        Raises:
            UnsupportedModelError: the model's tower cannot be looked into.
        """
        with self._lock:
            return see(self.loaded, answers.visual, FlowCut(target_num=target_num), answers.question)

    def _cut(self, inputs: Any, method: Method) -> tuple[dict[str, Any] | None, Answered]:
        """What the uncut model counts, and the answer of a method."""
        try:
            with self._lock, attach(self.loaded.model, method) as handle:
                tokens, seconds = generate(self.loaded, self._parts, inputs, self.max_new_tokens)
                trace = handle.trace
        except NotAppliedError:
            raise
        except (FlowCutError, ValueError) as error:
            return None, Answered(method, None, " ".join(str(error).split()))
        assert trace.sequence is not None and trace.images
        uncut, numbers = token_numbers(trace.images, trace.sequence)
        told = outcome(self.loaded, tokens, [seconds], numbers)
        return uncut, Answered(method, told, "", trace.images[0], trace.sequence.patches_at_the_end(0).cpu())
