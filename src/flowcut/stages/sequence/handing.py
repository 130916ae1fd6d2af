"""What the uncut forward hands to its encoder: asked of the forward itself, which alone knows.

Families differ in it, and so do versions of transformers: LLaVA and Qwen hand on every keyword they do not know,
LLaVA-NeXT only some and nothing at all where there are no images. The gate encodes in front of the forward and must
hand on the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...errors import NotAppliedError, UnsupportedModelError
from ...models.base import ModelParts

PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}
"""The forward arguments that may carry the raw input of each modality."""


class Reached(Exception):
    """The forward came to what it was watched for.

    Attributes:
        handed: the keyword and positional arguments of its encoder, or ``None`` where it called another module first.
    """

    def __init__(self, handed: tuple[tuple[Any, ...], dict[str, Any]] | None) -> None:
        super().__init__()
        self.handed = handed


class StandIn:
    """A module of which only embeddings are computed: calls of other modules inside it raise :class:`Reached`.

    The module itself is not touched, so other threads may use it meanwhile.

    Args:
        module: what it stands for.
        encoder: the name of the method whose arguments are wanted.
    """

    def __init__(self, module: nn.Module, encoder: str) -> None:
        self._module = module
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        if name == self._encoder:
            return self._encode
        value = getattr(self._module, name)
        return StandIn(value, self._encoder) if isinstance(value, nn.Module) else value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self._module, nn.Embedding):
            # Some forwards embed the text before they look at the pictures.
            return self._module(*args, **kwargs)
        raise Reached(None)

    def _encode(self, *args: Any, **kwargs: Any) -> Any:
        raise Reached((args, kwargs))


@torch.no_grad()
def handed_to(base: nn.Module, encoder: str, call: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with which the uncut forward calls an encoder, or ``None`` where it does not.

    Args:
        base: the base model.
        encoder: the name of its method, such as ``"get_image_features"``.
        call: the forward's arguments by name.

    Raises:
        Exception: whatever the forward raises in front of its encoder.
    """
    forward: Any = type(base).forward
    try:
        forward(StandIn(base, encoder), **call)
    except Reached as reached:
        return reached.handed
    return None


def check_modalities(parts: ModelParts, call: dict[str, Any]) -> None:
    """Refuse input of a kind that the model takes and that is not cut here.

    Raises:
        UnsupportedModelError: names it.
    """
    encoded = call.get("mm_encoder_outputs") or {}
    others = {name: arguments for name, arguments in PIXELS.items() if name not in parts.placeholders}
    given = [name for name, arguments in others.items() if encoded.get(name) is not None or any_of(call, arguments)]
    if given:
        raise UnsupportedModelError(
            f"{type(parts.base).__name__} was given {' and '.join(given)} input, which is not cut in this class "
            "(docs/families.md). Give frames as images, or detach for it."
        )


def any_of(call: dict[str, Any], arguments: tuple[str, ...]) -> bool:
    """Whether one of some arguments is given."""
    return any(call.get(name) is not None for name in arguments)


def check_unread(parts: ModelParts, call: dict[str, Any], modality: str) -> None:
    """Make sure that a call whose forward does not come to its encoder has no placeholders.

    Raises:
        NotAppliedError: it has some.
    """
    ids = call.get("input_ids")
    if ids is not None and bool((ids == parts.placeholders[modality]).any()):
        raise NotAppliedError(
            f"{type(parts.base).__name__} has {modality} placeholders in its prompt, but its forward calls another "
            f"module before get_{modality}_features, so that nothing could be cut. Encode the pictures first, as "
            "generate() does."
        )
