"""What a method is: it says what it wants at which stage; the stages do the cutting.

A method is a small frozen dataclass whose fields are its paper's hyper-parameters. For every pass it makes a policy
for each stage at which it acts: in the vision tower, behind the projector, inside the language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Positions = Literal["compact", "original"]


@dataclass(frozen=True)
class TowerPass:
    """One pass of a batch of images through a vision tower, as a policy needs to know it.

    Attributes:
        patches: N, patches of every image; groups of them where they are cut in groups.
        targets: how many patches of each image must leave the tower (B entries).
        feature_layer: the hidden state the model reads, a positive index (0 is the embedding output); in packed towers
            one more, since FlowCut's last cut there follows the last layer.
        device: where the activations live.
        frames: rows of each video, which share its budget; empty for images.
        ranks: whether there are rows of which nothing is cut, whose patches are only ranked, for
            :meth:`VisionPolicy.choose_pooled` or :meth:`VisionPolicy.rank`.
        packed: whether the tower packs images of any size into one sequence (Qwen2-VL); the patches counted here
            are then groups of them where :meth:`Method.cuts_groups` says so.
        seeds: gives a number for every image that depends on its pixels alone; the host waits for the device.
    """

    patches: int
    targets: tuple[int, ...]
    feature_layer: int
    device: torch.device
    frames: tuple[int, ...] = ()
    ranks: bool = False
    packed: bool = False
    seeds: Callable[[], tuple[int, ...]] = tuple

    @property
    def last_layer(self) -> int:
        """The layer whose output the model reads; the last one after which something can be cut."""
        return self.feature_layer - (2 if self.packed else 1)


@dataclass(frozen=True)
class LayerView:
    """What one vision layer's attention computed.

    Attributes:
        layer: 0-based index.
        query, key, value: ``[B, H, S, D]`` after projection (and rotary embedding where there is one).
        scaling: the layer's factor on ``q . k``.
        prefix: leading tokens that are not patches (the first is CLS); 0 where the tower has no CLS.
        valid: ``[B, S]``, true for real tokens, or ``None`` where all are.
        group: how many tokens that follow one another are cut or kept together; the policy chooses among groups.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    prefix: int
    valid: Tensor | None
    group: int = 1


@dataclass(frozen=True)
class Selection:
    """The patches that stay, as positions among those alive.

    Attributes:
        index: ``[B, K]``, ascending in each row, filled up with 0 behind ``counts[b]`` entries.
        counts: how many patches each image keeps.
    """

    index: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Merge(Selection):
    """The patches that stay, and what of all patches goes into each of them.

    Attributes:
        weights: ``[B, K, N]``, float32: the weight of each of the N patches alive in every token that goes on; 0 in
            rows and columns that are filled up. The patch in ``index`` stands for the token: its place in the order,
            and its position.
    """

    weights: Tensor


@dataclass(frozen=True)
class OutputView:
    """What a vision layer put out for the patches.

    Attributes:
        layer: 0-based index.
        states: ``[B, N, width]``; where groups of patches are cut, the states of a group side by side.
        counts: how many patches (or groups) of each image are real, in front of what is filled up.
    """

    layer: int
    states: Tensor
    counts: tuple[int, ...]


class VisionPolicy(ABC):
    """A method at work in one pass through a vision tower."""

    @abstractmethod
    def observe(self, view: LayerView) -> None:
        """Take in what a layer's attention computed; called in every layer that may be cut."""

    def bias(self, layer: int) -> Tensor | None:
        """What is added to the attention logits of every patch's key in ``layer``, ``[B, N]``, or ``None``."""
        return None

    def select(self, layer: int) -> Selection | None:
        """The patches that go on after ``layer``, or ``None`` where this layer cuts nothing.

        The rest of the layer is not computed for the others, so they cannot be merged.
        """
        return None

    def reduce(self, view: OutputView) -> Selection | Merge | None:
        """As :meth:`select`, chosen from the layer's output; a :class:`Merge` joins patches."""
        return None

    def choose_pooled(self, weights: Tensor, targets: tuple[int, ...]) -> Selection:
        """The tokens that stay, where patches are pooled behind the tower and it stays whole.

        Called behind the last layer, if :attr:`Method.ranks_pooled`.

        Args:
            weights: float ``[tokens, patches]``, the weight of every patch in every pooled token of a row.
            targets: how many tokens of each row stay.
        """
        raise TypeError(f"{type(self).__name__} does not rank pooled tokens.")

    def rank(self) -> Tensor:
        """The importance of every patch, ``[B, N]``, of rows that were only ranked, where the model interpolates their
        patches behind the tower; called behind the last layer, if :attr:`Method.ranks_pooled`."""
        raise TypeError(f"{type(self).__name__} does not rank patches.")


@dataclass(frozen=True)
class ProjectedView:
    """One image behind the projector.

    Attributes:
        features: ``[N, width]``, its visual tokens in the order of the prompt; separators and prefix tokens are left
            out.
        places: int64 ``[N]``, the place of each in ``grid``, row by row.
        grid: (height, width), or (tiles or time, height, width).
        text: ``[M, width]``, the language model's embeddings of the prompt's text behind the image (of all its text,
            where none follows); empty unless :attr:`Method.reads_text`.
        target: how many tokens go on.
    """

    features: Tensor
    places: Tensor
    grid: tuple[int, ...]
    text: Tensor
    target: int


class ProjectorPolicy(ABC):
    """A method at work behind the projector, on one image after the other."""

    @abstractmethod
    def select(self, view: ProjectedView) -> Tensor:
        """The tokens that go on: int64 ``[target]``, ascending."""


@dataclass(frozen=True)
class DecoderView:
    """What one decoder layer's attention computed for the tokens of this pass (not for the cached ones).

    Attributes:
        layer: 0-based index.
        query: ``[B, H, S, D]`` after rotary embedding.
        key, value: ``[B, G, S, D]``; with grouped-query attention G divides H.
        scaling: the layer's factor on ``q . k``.
        image: ``[B, S]``, which of the batch's images (or videos) a visual token belongs to, -1 for text.
        real: ``[B, S]``, false for padding.
        last: ``[B]``, the column of each sample's last prompt token (not of tokens generated without a cache).
        source: ``[B, S]``, the column of the uncut prompt behind every column, -1 in padding.
        targets: how many visual tokens of each image may stay.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    image: Tensor
    real: Tensor
    last: Tensor
    source: Tensor
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Recycled:
    """Cut tokens that go on as the means of clusters.

    Attributes:
        row: the sample.
        members: ``[N]``, columns of the tokens that are merged.
        cluster: ``[N]``, the cluster of each, from 0.
        places: ``[C]``, the column at which each cluster's mean goes on.
    """

    row: int
    members: Tensor
    cluster: Tensor
    places: Tensor


class DecoderPolicy(ABC):
    """A method at work in one pass through the language model."""

    @abstractmethod
    def select(self, view: DecoderView) -> Tensor:
        """The columns that go on after the layer: boolean ``[B, S]``; text always stays."""

    def enter(self, hidden: Tensor, image: Tensor, last: Tensor) -> None:  # noqa: B027
        """Take in the embeddings ``[B, S, width]`` that the language model starts from; by default nothing.

        Args:
            image, last: see :class:`DecoderView`; the columns are those that entered the language model.
        """

    def recycle(self, layer: int, hidden: Tensor) -> list[Recycled]:
        """What becomes of the tokens that :meth:`select` just cut; by default they are gone.

        Args:
            layer: the layer that cut.
            hidden: ``[B, S, width]``, its output for all tokens.
        """
        return []


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
class Method:
    """Base of every method.

    Class attributes:
        stage: where it acts, in words.
        requires_cls: whether it cannot do without a CLS token.
        reads_text: whether the choice depends on the text.
        shrinks_picture: whether it scales pictures down in front of the tower, and does nothing else.
        cuts_tower: whether it cuts inside the vision tower; otherwise all its patches go through the projector.
        cuts_projected: whether it cuts behind the projector.
        ranks_ahead: whether a cut behind a decoder layer is chosen from q, k, v that the *next* layer computes of all
            tokens, instead of that layer's own.
        ranks_pooled: whether its vision policy can rank tokens that are pooled or interpolated from patches behind the
            tower.

    Attributes:
        target_num: visual tokens of each image that reach the language model.
        retain_ratio: the same as a share of the image's visual tokens, in (0, 1]; give one of the two.
        positions: ``"compact"`` renumbers the tokens behind a cut (0 ... n-1), ``"original"`` lets every kept
            token keep the position it had in the uncut sequence, as it always does where positions are places in a
            picture (Qwen2-VL).
        image_newline: LLaVA-NeXT ends every row of patches with a token of its own. Whether the rows that still
            have a patch keep it; the released code drops them all.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    stage: ClassVar[str]
    requires_cls: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    shrinks_picture: ClassVar[bool] = False
    cuts_tower: ClassVar[bool] = True
    cuts_projected: ClassVar[bool] = False
    ranks_ahead: ClassVar[bool] = False
    ranks_pooled: ClassVar[bool] = False

    target_num: int | None = None
    retain_ratio: float | None = None
    positions: Positions = "compact"
    image_newline: bool = False

    def __post_init__(self) -> None:
        check_budget(self.target_num, self.retain_ratio)
        if self.positions not in ("compact", "original"):
            raise ValueError(f'positions must be "compact" or "original", got {self.positions!r}.')

    @property
    def watches_tower(self) -> bool:
        """Whether its work in the tower depends on more than the last layer that the model reads."""
        return self.cuts_tower

    def tokens_to_keep(self, available: int) -> int:
        """How many of an image's ``available`` visual tokens stay; at most ``available``, at least 1."""
        if self.target_num is not None:
            return min(self.target_num, available)
        assert self.retain_ratio is not None
        return max(1, min(available, round(self.retain_ratio * available)))

    def decoder_layers(self, second_cut: bool) -> tuple[int, ...]:
        """The decoder layers after which the method cuts, ascending; none by default.

        Args:
            second_cut: whether the model's family is one where FlowCut's paper cuts a second time.
        """
        return ()

    def decoder_policy(self) -> DecoderPolicy:
        """The policy for one pass through the language model, where :meth:`decoder_layers` names any."""
        raise TypeError(f"{type(self).__name__} names decoder layers but has no decoder_policy.")

    def tile_targets(self, tokens: int, tiles: int, patches: int, second_cut: bool) -> tuple[int, ...]:
        """How many patches of each tile of an image leave the tower; by default the budget in equal shares.

        Args:
            tokens: the image's budget, its prefix tokens taken off.
            tiles: tiles of the image.
            patches: patches of one tile.
            second_cut: see :meth:`decoder_layers`.
        """
        share, rest = divmod(tokens, tiles)
        return tuple(min(patches, max(1, share + (tile < rest))) for tile in range(tiles))

    def packed_target(self, tokens: int, available: int, second_cut: bool) -> int:
        """How many visual tokens of an image leave a tower that packs images of any size, such as Qwen2-VL's.

        Args:
            tokens: the image's budget.
            available: its visual tokens, uncut.
            second_cut: see :meth:`decoder_layers`.
        """
        return min(tokens, available)

    def cuts_groups(self) -> bool:
        """Whether a tower that merges patches into visual tokens is cut by whole groups, or patch by patch."""
        return True

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        """The policy for one pass; called only where there is something to cut in the tower."""
        raise TypeError(f"{type(self).__name__} says that it cuts inside the vision tower but has no vision_policy.")

    def projector_policy(self) -> ProjectorPolicy:
        """The policy behind the projector, where :attr:`cuts_projected`."""
        raise TypeError(f"{type(self).__name__} says that it cuts behind the projector but has no projector_policy.")
