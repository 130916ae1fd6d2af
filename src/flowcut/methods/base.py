"""What a method is: it says what it wants at which stage; the stages do the cutting.

A method is a small frozen dataclass whose fields are its paper's hyper-parameters. For every pass through a
vision tower it makes a policy, which watches the layers and chooses the patches that go on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Positions = Literal["compact", "original"]


@dataclass(frozen=True)
class TowerPass:
    """One pass of a batch of images through a vision tower, as a policy needs to know it.

    Attributes:
        patches: N, patches of every image.
        targets: how many patches of each image must leave the tower (B entries).
        feature_layer: the hidden state the model reads, a positive index (0 is the embedding output).
        device: where the activations live.
    """

    patches: int
    targets: tuple[int, ...]
    feature_layer: int
    device: torch.device


@dataclass(frozen=True)
class LayerView:
    """What one vision layer's attention computed.

    Attributes:
        layer: 0-based index.
        query, key, value: ``[B, H, S, D]`` after projection (and rotary embedding where there is one).
        scaling: the layer's factor on ``q . k``.
        prefix: leading tokens that are not patches (the first is CLS); 0 where the tower has no CLS.
        valid: ``[B, S]``, true for real tokens, or ``None`` where all are.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    prefix: int
    valid: Tensor | None


@dataclass(frozen=True)
class Selection:
    """The patches that stay, as positions among those alive.

    Attributes:
        index: ``[B, K]``, ascending in each row, filled up with 0 behind ``counts[b]`` entries.
        counts: how many patches each image keeps.
    """

    index: Tensor
    counts: tuple[int, ...]


class VisionPolicy(ABC):
    """A method at work in one pass through a vision tower."""

    @abstractmethod
    def observe(self, view: LayerView) -> None:
        """Take in what a layer's attention computed; called in every layer that may be cut."""

    @abstractmethod
    def select(self, layer: int) -> Selection | None:
        """The patches that go on after ``layer``, or ``None`` where this layer cuts nothing."""


def check_budget(target_num: object, retain_ratio: object) -> None:
    """Validate the two ways of giving a budget.

    Raises:
        ValueError: both or neither given, ``target_num`` not an int of at least 1, ``retain_ratio`` outside (0, 1].
    """
    if (target_num is None) == (retain_ratio is None):
        given = "neither" if target_num is None else f"both ({target_num!r} and {retain_ratio!r})"
        raise ValueError(
            f"Give exactly one of target_num and retain_ratio, not {given}: target_num=64 keeps 64 visual tokens "
            "of every image, retain_ratio=1/3 a third of them."
        )
    if target_num is not None and (not isinstance(target_num, int) or isinstance(target_num, bool) or target_num < 1):
        raise ValueError(f"target_num must be an int of at least 1 (visual tokens per image), got {target_num!r}.")
    if retain_ratio is not None and (
        not isinstance(retain_ratio, (int, float)) or isinstance(retain_ratio, bool) or not 0.0 < retain_ratio <= 1.0
    ):
        raise ValueError(f"retain_ratio must lie in (0, 1], got {retain_ratio!r}; 1/9 keeps one token in nine.")


@dataclass(frozen=True)
class Method(ABC):
    """Base of every method.

    Attributes:
        target_num: visual tokens of each image that reach the language model.
        retain_ratio: the same as a share of the image's visual tokens, in (0, 1]; give one of the two.
        positions: ``"compact"`` renumbers the tokens behind a cut (0 ... n-1), ``"original"`` lets every kept
            token keep the position it had in the uncut sequence.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    requires_cls: ClassVar[bool] = False

    target_num: int | None = None
    retain_ratio: float | None = None
    positions: Positions = "compact"

    def __post_init__(self) -> None:
        check_budget(self.target_num, self.retain_ratio)
        if self.positions not in ("compact", "original"):
            raise ValueError(f'positions must be "compact" or "original", got {self.positions!r}.')

    def tokens_to_keep(self, available: int) -> int:
        """How many of an image's ``available`` visual tokens stay; at most ``available``, at least 1."""
        if self.target_num is not None:
            return min(self.target_num, available)
        assert self.retain_ratio is not None
        return max(1, min(available, round(self.retain_ratio * available)))

    @abstractmethod
    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        """The policy for one pass; called only where there is something to cut."""
