"""What a method is shown at each stage, and what it answers with: plain data, with shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algorithm.flow import Glimpse, glimpse


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
        model: the name of the model, or the folder it was loaded from; may be empty.
        seeds: gives a number for every image that depends on its pixels alone; the host waits for the device.
    """

    patches: int
    targets: tuple[int, ...]
    feature_layer: int
    device: torch.device
    frames: tuple[int, ...] = ()
    ranks: bool = False
    packed: bool = False
    model: str = ""
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

    def glimpse(self, *, semantic_scale: float | None = 1.0, with_density: bool = True) -> Glimpse:
        """What :func:`~flowcut.algorithm.flow.compare` needs of it; see :func:`~flowcut.algorithm.flow.glimpse`."""
        return glimpse(
            self.query,
            self.key,
            self.value,
            self.scaling,
            self.prefix,
            self.valid,
            semantic_scale=semantic_scale,
            with_density=with_density,
        )


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
        handed_on: ``[N, C]``, what the policy in the tower handed on (``VisionPolicy.handed_on``); ``None`` where
            it handed on nothing, and where patches are pooled or interpolated behind the tower.
    """

    features: Tensor
    places: Tensor
    grid: tuple[int, ...]
    text: Tensor
    target: int
    handed_on: Tensor | None = None


@dataclass(frozen=True)
class DecoderView:
    """What one decoder layer's attention computed for the tokens of this pass (not for the cached ones).

    Attributes:
        layer: 0-based index.
        query: ``[B, H, S, D]`` after rotary embedding.
        key, value: ``[B, G, S, D]``; with grouped-query attention G divides H.
        scaling: the layer's factor on ``q . k``.
        image: ``[B, S]``, which of the batch's images (or videos) a visual token belongs to, -1 for text.
        real: ``[B, S]``, false for padding; ``None`` where it is known that there is none.
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
    real: Tensor | None
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
