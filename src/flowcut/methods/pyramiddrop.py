"""PyramidDrop: a share of the visual tokens is dropped at several depths (CVPR 2025, arXiv 2410.17247)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from .base import Method
from .policies import DecoderPolicy
from .ranking import attention_of_last, images_in, keep_best
from .views import DecoderView


@dataclass(frozen=True)
class PyramidDrop(Method):
    """PyramidDrop's hyper-parameters. The vision tower and the first stage of the decoder see all visual tokens.

    ``target_num`` counts the visual tokens of each image in the last stage. Every cut keeps the same share of them,
    ``(target_num / tokens) ** (1 / cuts)``: of 576 tokens and 72 at the end the paper's lambda of 0.5. The average
    over layers, which papers quote, is ``handle.trace.sequence.visual_tokens_mean``.

    As in the released code, tokens are ranked by the attention that the prompt's last token pays, a mean over heads,
    in the first layer of the *next* stage: its projections run once more for the ranking (not in the counted FLOPs).
    It ranks the visual tokens of one image only; with several in a prompt each has its own budget here.

    Attributes:
        layers: the decoder layers in front of which a stage ends (paper, section 4.1: 8, 16 and 24 of 32).
    """

    name: ClassVar[str] = "pyramiddrop"
    summary: ClassVar[str] = "an equal share dropped before decoder layers 8, 16 and 24, by the last prompt token"
    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "CVPR 2025, arXiv 2410.17247"
    reads_text: ClassVar[bool] = True
    cuts_tower: ClassVar[bool] = False
    ranks_ahead: ClassVar[bool] = True

    layers: tuple[int, ...] = (8, 16, 24)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or min(self.layers) < 1:
            raise ValueError(f"layers must be ascending decoder layers of at least 1, got {self.layers!r}.")

    def decoder_layers(self, second_cut: bool) -> tuple[int, ...]:
        return tuple(layer - 1 for layer in self.layers)

    def decoder_policy(self) -> DecoderPolicy:
        return PyramidDropPolicy(self.decoder_layers(second_cut=False))


def tokens_after(cut: int, cuts: int, tokens: int, target: int) -> int:
    """How many of an image's ``tokens`` are left after cut number ``cut`` (from 1) of ``cuts``; ``target`` at last."""
    if cut == cuts or target >= tokens:
        return min(target, tokens)
    return max(target, int(tokens * (target / tokens) ** (cut / cuts)))


class PyramidDropPolicy(DecoderPolicy):
    """The cuts of one pass.

    Args:
        layers: the decoder layers behind which it cuts.
    """

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self.tokens: tuple[int, ...] = ()

    def select(self, view: DecoderView) -> Tensor:
        if not self.tokens:
            self.tokens = tuple(images_in(view))
        after = partial(tokens_after, self.layers.index(view.layer) + 1, len(self.layers))
        return keep_best(view, attention_of_last, tuple(map(after, self.tokens, view.targets)))
