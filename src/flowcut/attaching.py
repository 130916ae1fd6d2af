"""Attaching a method to a model, and taking it off again."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any, TypeVar

from torch import nn

from .errors import UnsupportedModelError
from .methods import METHODS, FlowCut, Method, make_method
from .models import ModelFamily, ModelParts, find_parts
from .models.towers import side
from .stages.decoder.layers import check_layers, watched_attentions
from .stages.observing.attention import implementation_of
from .stages.observing.replicas import check_replica, strip_replica
from .stages.observing.stage import HANDLE, Stage
from .stages.projector.encoder import EncoderStage, check_encoder
from .stages.sequence.gate import SequenceStage
from .stages.tower.batched import BatchedStage
from .stages.tower.packed import PackedStage
from .stages.tower.shrinking import check_shrinking
from .stages.tower.tiles import budget_of_patches
from .stages.tower.whole import WholeStage
from .trace import ImageTrace, Trace

__all__ = ["EncoderHandle", "Handle", "attach", "attach_encoder", "detach", "flowcut"]

Model = TypeVar("Model", bound=nn.Module)

STAGES = {"tower": "in the vision tower", "projector": "behind the projector", "decoder": "inside the language model"}
"""Where methods cut, in words."""


Attached = TypeVar("Attached", bound="Attachment")


class Attachment:
    """A method on a model. Use it as a context manager, or call :meth:`detach`.

    Attributes:
        model: the model as it was given.
        method: the method at work.
    """

    def __init__(self, model: nn.Module, method: Method, parts: ModelParts, stages: tuple[Stage, ...]) -> None:
        self.model = model
        self.method = method
        self._parts = parts
        self._stages = stages
        parts.base.__dict__[HANDLE] = self

    @property
    def attached(self) -> bool:
        """Whether the method still works on the model."""
        return self._parts.base.__dict__.get(HANDLE) is self

    def detach(self) -> None:
        """Take the method off; the model is then as it was before. Doing it twice does no harm."""
        if self.attached:
            for stage in reversed(self._stages):
                stage.close()
            del self._parts.base.__dict__[HANDLE]

    def __enter__(self: Attached) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()


class Handle(Attachment):
    """A method that cuts what a model's language model reads."""

    def __init__(self, model: nn.Module, method: Method, family: ModelFamily, parts: ModelParts) -> None:
        owner = object()
        vision = vision_stage(family, parts, method, owner)
        self._sequence = SequenceStage(parts, method, owner, self._adopt)
        super().__init__(model, method, parts, (vision, *self._sequence.all))

    @property
    def trace(self) -> Trace:
        """What the last forward pass did that saw an image or began a new sequence."""
        return self._sequence.trace

    def _adopt(self, module: nn.Module) -> SequenceStage:
        """Attach to a replica that ``nn.DataParallel`` made of the model, or of its base, if that was not done yet."""
        check_replica(module)
        known: Handle | None = module.__dict__.get(HANDLE)
        if known is not None and known._parts.base is module:
            return known._sequence
        original = self._parts.top if type(module) is type(self._parts.top) else self._parts.base
        for stage in self._stages:
            strip_replica(original, module, stage.handles, stage.overrides, stage.observations)
        family, parts = find_parts(module)
        return Handle(module, self.method, family, parts)._sequence


def vision_stage(family: ModelFamily, parts: ModelParts, method: Method, owner: object) -> Stage:
    """The stage in front of the language model, for towers of either kind, or one that stays whole."""
    if "tower" in parts.refusals:
        return WholeStage(parts, method)
    if parts.tower.packing is not None:
        return PackedStage(parts, method)
    return BatchedStage(family, parts, method, owner)


class EncoderHandle(Attachment):
    """A method that cuts what a model's vision encoder hands out."""

    def __init__(self, model: nn.Module, method: Method, family: ModelFamily, parts: ModelParts) -> None:
        vision = vision_stage(family, parts, method, object())
        self._encoder = EncoderStage(parts, method)
        super().__init__(model, method, parts, (vision, self._encoder))

    @property
    def images(self) -> tuple[ImageTrace, ...]:
        """What became of every image of the last call, in order; the places of what was handed out among them."""
        return self._encoder.images


def attach(model: nn.Module, method: Method) -> Handle:
    """Let ``method`` work on ``model`` until the handle is detached.

    Weights, configs and what ``save_pretrained`` writes do not change. A method that is already attached is
    replaced.

    Args:
        model: a supported model, or a wrapper around one (PEFT, DDP).
        method: what to do, such as ``FlowCut(target_num=64)``.

    Returns:
        The handle: ``trace``, ``detach()``, usable in a ``with`` statement.

    Raises:
        UnsupportedModelError: the model, its vision tower or its attention implementation is not supported, or there
            is more than one supported model inside.
        ValueError: the method's budget does not fit the model. In both cases nothing was attached.
    """
    family, parts = fitting_parts(model, method)
    check_layers(method.decoder_layers(parts.second_cut), len(parts.decoder_layers))
    text_config: Any = parts.language_model.config
    for attention in watched_attentions(parts, method):
        implementation_of(attention, text_config._attn_implementation or "eager")
    make_room(parts)
    return Handle(model, method, family, parts)


def attach_encoder(model: nn.Module, method: Method) -> EncoderHandle:
    """Let ``method`` work on the vision encoder of ``model`` alone, for an engine that has its own language model.

    ``get_image_features`` (and ``get_video_features``) of the base model then hand out the kept tokens in
    ``pooler_output``, one entry for each image; ``handle.images`` says which they are. :func:`~flowcut.tokens_for` says
    beforehand how many. Nothing else changes: the model's own ``forward`` takes a prompt with as many placeholders.

    Args:
        model: a supported model, its base (``AutoModel``), or a wrapper around one.
        method: what to do; it must neither read the text nor cut inside the language model.

    Raises:
        UnsupportedModelError, ValueError: see :func:`attach`; nothing was attached.
    """
    family, parts = fitting_parts(model, method)
    check_encoder(method, parts.second_cut)
    make_room(parts)
    return EncoderHandle(model, method, family, parts)


def fitting_parts(model: nn.Module, method: Method) -> tuple[ModelFamily, ModelParts]:
    """The parts of ``model``, if ``method`` can work on its tower and behind it; see :func:`attach` for errors."""
    if not isinstance(method, Method):
        raise TypeError(f"method must be a flowcut method such as FlowCut(target_num=64), got {method!r}.")
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError(
            "This is what torch.compile makes of a model. Attach to the model inside it (model._orig_mod): the "
            "compiled one then cuts as well, and is compiled anew at its next call."
        )
    family, parts = find_parts(model)
    check_stages(method, parts)
    if method.requires_cls and not parts.tower.prefix:
        raise UnsupportedModelError(
            f"{method.name} ranks patches by the CLS token, and {type(parts.tower.module).__name__} has none. Use a "
            "method that does not need it, such as FlowCut."
        )
    if method.shrinks_picture:
        check_shrinking(parts)
    packing = parts.tower.packing
    if packing is not None and packing.deepstack and not method.cuts_groups():
        raise UnsupportedModelError(
            f"{type(parts.base).__name__} merges patches in the middle of its tower as well, so that only whole merge "
            'groups can be cut. Use a method that cuts groups, such as FlowCut with merge_unit="group".'
        )
    choice = family.feature_choice(parts, {})
    check_fit(method, parts, choice.visible_prefix)
    if packing is None and "tower" not in parts.refusals:
        budget_of_patches(method, patches_of(parts) + choice.visible_prefix, choice.visible_prefix)
    for tower in parts.towers:
        for attention in tower.attentions:
            implementation_of(attention, tower.config._attn_implementation or "eager")
    return family, parts


def make_room(parts: ModelParts) -> None:
    """Take off what is attached already."""
    previous: Attachment | None = parts.base.__dict__.get(HANDLE)
    if previous is not None:
        previous.detach()


def check_stages(method: Method, parts: ModelParts) -> None:
    """Refuse a method that cuts where this model cannot be cut.

    Raises:
        UnsupportedModelError: says where, why, and which methods fit.
    """
    for stage, place in STAGES.items():
        if stage in parts.refusals and cuts_at(method, stage, parts.second_cut):
            fitting = [
                name
                for name, other in METHODS.items()
                if not any(cuts_at(make_method(name, target_num=1), at, parts.second_cut) for at in parts.refusals)
                and not other.shrinks_picture
            ]
            raise UnsupportedModelError(
                f"{method.name} cuts {place}, and {type(parts.base).__name__} {parts.refusals[stage]}. "
                f"Methods that cut elsewhere: {', '.join(fitting)}."
            )


def cuts_at(method: Method, stage: str, second_cut: bool) -> bool:
    """Whether a method cuts at a stage, ``"tower"``, ``"projector"`` or ``"decoder"``."""
    return {
        "tower": method.cuts_tower,
        "projector": method.cuts_projected,
        "decoder": bool(method.decoder_layers(second_cut)),
    }[stage]


def patches_of(parts: ModelParts) -> int:
    """Patches, or groups of them, of an image at the tower's configured size."""
    config: Any = parts.tower.config
    return (side(config.image_size) // parts.tower.patch_size) ** 2 // parts.group


def check_fit(method: Method, parts: ModelParts, visible_prefix: int) -> None:
    """Refuse budgets that no image of this model could ever fill, warn about those that cut nothing.

    Raises:
        ValueError: ``target_num`` exceeds what the language model can read at all.
    """
    if method.target_num is None:
        return
    config: Any = parts.language_model.config
    limit = config.max_position_embeddings
    if parts.tower.packing is not None or parts.packer is not None or "tower" in parts.refusals:
        # Images of any size, in one sequence or in tiles: how many tokens one has is known when it comes.
        if method.target_num > limit:
            raise ValueError(
                f"target_num={method.target_num} is more than the language model can read ({limit} tokens). Choose a "
                "smaller target_num, or give retain_ratio."
            )
        return
    available = patches_of(parts) + visible_prefix
    if method.target_num > max(limit, available):
        raise ValueError(
            f"target_num={method.target_num} is more than the model can produce or read: an image has {available} "
            f"visual tokens, the language model reads {limit}. Choose a target_num below {available}."
        )
    if method.target_num >= available and "video" not in parts.placeholders:
        warnings.warn(
            f"target_num={method.target_num} covers all {available} visual tokens of an image: nothing will be cut.",
            stacklevel=5,
        )


def flowcut(model: Model, target_num: int | None = None, *, retain_ratio: float | None = None) -> Model:
    """Cut the visual tokens of ``model`` with FlowCut; the two-line use.

    Args:
        model: a supported model.
        target_num: visual tokens kept of each image.
        retain_ratio: the same as a share of the image's tokens, in (0, 1]; give one of the two.

    Returns:
        The same model, attached. :func:`detach` takes the method off.

    Raises:
        UnsupportedModelError, ValueError: see :func:`attach`.
    """
    attach(model, FlowCut(target_num=target_num, retain_ratio=retain_ratio))
    return model


def detach(model: Model) -> Model:
    """Take off whatever is attached to ``model``; a model with nothing attached is left as it is."""
    handle = handle_of(model)
    if handle is not None:
        handle.detach()
    return model


def handle_of(model: nn.Module) -> Attachment | None:
    """The handle of what is attached to ``model``, or ``None``."""
    _, parts = find_parts(model)
    handle: Attachment | None = parts.base.__dict__.get(HANDLE)
    return handle
