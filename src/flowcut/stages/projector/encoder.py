"""The vision encoder by itself, for an engine that has its own language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import FlowCutError, UnsupportedModelError
from ...methods.base import Method
from ...models.base import ModelParts
from ...trace import ImageTrace
from ..observing.overrides import Override
from ..observing.stage import Stage
from .choosing import cut_projected
from .features import TRACES


class EncoderStage(Stage):
    """Makes the choice behind the projector where the encoder runs by itself, until :meth:`close`.

    Attributes:
        images: what became of the images of the last call.
    """

    def __init__(self, parts: ModelParts, method: Method) -> None:
        super().__init__()
        self.method = method
        self.images: tuple[ImageTrace, ...] = ()
        for modality in parts.placeholders:
            self.overrides.append(Override(parts.base, f"get_{modality}_features", self._hand_out))

    def _hand_out(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("return_dict") is False:
            raise FlowCutError(
                "A cut encoder hands its tokens out in pooler_output, with the images they are of; call it without "
                "return_dict=False."
            )
        outputs = original(*args, **kwargs)
        if self.method.cuts_projected:
            nothing = outputs.pooler_output[0][:0]
            traces: list[ImageTrace] = getattr(outputs, TRACES)
            outputs = cut_projected(self.method, outputs, traces, [nothing] * len(traces))
        self.images = tuple(getattr(outputs, TRACES))
        return outputs


def check_encoder(method: Method, second_cut: bool) -> None:
    """Refuse methods that cannot do their work in front of the language model.

    Raises:
        UnsupportedModelError: says which part is in the way, and what to do.
    """
    if method.reads_text:
        raise UnsupportedModelError(
            f"{method.name} with these settings reads the question, and an encoder by itself sees no text, so that its "
            "tokens can be cached. Use a method that looks at the picture alone, such as flowcut or flowcut_plus."
        )
    layers = method.decoder_layers(second_cut)
    if layers:
        without = ' FlowCut does without its second cut with decoder_layer=None ("flowcut(decoder_layer=none)").'
        raise UnsupportedModelError(
            f"{method.name} with these settings cuts inside the language model (after decoder layer "
            f"{', '.join(map(str, layers))}), which is another engine's here."
            f"{without if hasattr(method, 'decoder_layer') else ''} Else use a method that cuts in front of it."
        )
