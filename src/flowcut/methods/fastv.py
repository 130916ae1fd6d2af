"""FastV: one cut after an early decoder layer, by the last token's attention (ECCV 2024, arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Method, Positions
from .policies import DecoderPolicy
from .ranking import attention_of_last, keep_best
from .views import DecoderView


@dataclass(frozen=True)
class FastV(Method):
    """FastV's hyper-parameters. The vision tower and the first ``layers`` decoder layers see all visual tokens.

    ``target_num`` counts the visual tokens of each image behind the cut (the released code's attention rank), not the
    average over layers that some papers quote: that is ``handle.trace.sequence.visual_tokens_mean``.

    As in the released code, tokens are ranked by the attention of the last layer that sees them all, a mean over
    heads, in the row of the prompt's last token, and keep their position ids. It ranks the tokens of one image only;
    with several in a prompt each has its own budget here.

    Attributes:
        layers: K, decoder layers in front of the cut (paper, section 4.1: 2).
        positions: see :class:`~flowcut.methods.base.Method`; kept tokens keep theirs, as released.
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "one cut after decoder layer K, by the attention of the last prompt token"
    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "ECCV 2024, arXiv 2403.06764"
    reads_text: ClassVar[bool] = True
    cuts_tower: ClassVar[bool] = False

    positions: Positions = "original"
    layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.layers, int) or isinstance(self.layers, bool) or self.layers < 1:
            raise ValueError(
                f"layers must be an int of at least 1 (decoder layers before the cut), got {self.layers!r}."
            )

    def decoder_layers(self, second_cut: bool) -> tuple[int, ...]:
        return (self.layers - 1,)

    def decoder_policy(self) -> DecoderPolicy:
        return FastVPolicy()


class FastVPolicy(DecoderPolicy):
    """The cut: of every image the tokens that the last prompt token attends to most."""

    def select(self, view: DecoderView) -> Tensor:
        return keep_best(view, attention_of_last, view.targets)
