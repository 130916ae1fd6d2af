"""Observing the information flow in a model, without cutting anything."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NoReturn

from torch import nn

from .errors import FlowCutError, UnsupportedModelError
from .models import ModelFamily, ModelParts, find_parts
from .stages.observing.stage import HANDLE
from .stages.recording.stage import RecordingStage
from .trace import ImageFlow

__all__ = ["Flow", "observe"]


class Flow:
    """What was seen of a model at work. Use it as a context manager, or call :meth:`close`; it can be read afterwards.

    Attributes:
        model: the model as it was given.
    """

    def __init__(
        self, model: nn.Module, family: ModelFamily, parts: ModelParts, to_global: bool, language: bool
    ) -> None:
        self.model = model
        self._parts = parts
        self._stage = RecordingStage(family, parts, to_global, language)
        parts.base.__dict__[HANDLE] = self

    @property
    def images(self) -> list[ImageFlow]:
        """Every picture and video that went through the model, in the order of the calls; batches in their order."""
        return self._stage.images

    @property
    def observing(self) -> bool:
        """Whether the model is still watched."""
        return self._parts.base.__dict__.get(HANDLE) is self

    def clear(self) -> None:
        """Forget what was seen so far."""
        self._stage.forget()

    def close(self) -> None:
        """Watch no longer; the model is then as it was before. Doing it twice does no harm."""
        if self.observing:
            self._stage.close()
            del self._parts.base.__dict__[HANDLE]

    def detach(self) -> NoReturn:
        """What ``attach`` and ``detach`` ask of anything that lies on a model.

        Raises:
            FlowCutError: always: the recording would end unnoticed.
        """
        raise FlowCutError(
            "This model is being observed. Leave the with block of observe(model), or call close() on what it gave, "
            "before a method is attached or taken off."
        )

    def __enter__(self) -> Flow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def observe(model: nn.Module, *, to_global: bool = False, language: bool = True) -> Flow:
    """Watch the information flow in ``model``, which goes on as it is: nothing is cut, and no answer changes.

    ``with observe(model) as flow: model.generate(...)``; then ``flow.images`` has an entry for every picture and video:
    for every vision layer the relation, semantic relevance, density, score and cumulative importance of every patch,
    the entropy of the relation, how much patches are like each other, and what FlowCut's schedule would cut; and for
    every layer of the language model what the last token of the prompt looked at. The numbers are FlowCut's own with
    its default settings, by the same functions. They are kept on the CPU in float32; no N x N matrix is.

    Args:
        model: a supported model whose vision tower can be cut, or a wrapper around one (PEFT).
        to_global: whether to record the attention that every patch pays to the global token, too. That takes all N x N
            logits of every layer, which costs about as much as the layer's attention.
        language: whether to look at the language model.

    Raises:
        UnsupportedModelError: the model, its tower or its attention implementation cannot be observed.
        FlowCutError: a method is attached to the model, or it is being observed already.
    """
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError(
            "This is what torch.compile makes of a model. Observe the model inside it (model._orig_mod)."
        )
    family, parts = find_parts(model)
    if "tower" in parts.refusals:
        raise UnsupportedModelError(
            f"{type(parts.base).__name__} {parts.refusals['tower']}, so its flow cannot be observed. flowcut models "
            "lists the classes whose tower can be cut."
        )
    present: Any = parts.base.__dict__.get(HANDLE)
    if isinstance(present, Flow):
        raise FlowCutError("This model is being observed already. Read that recording, or close() it first.")
    if present is not None:
        raise FlowCutError(
            f"A method ({present.method.name}) is attached to this model, and what it cuts could not be seen. "
            "detach(model) first, and attach it again behind the observation."
        )
    family.feature_choice(parts, {})
    return Flow(model, family, parts, to_global, language)
