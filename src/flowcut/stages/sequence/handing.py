"""What the uncut forward hands to its encoder: asked of the forward itself, which alone knows.

Families differ in it, and so do versions of transformers: LLaVA and Qwen hand on every keyword they do not know,
LLaVA-NeXT only some and nothing at all where there are no images. The gate encodes in front of the forward and must
hand on the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


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
