"""SparseVLM: text-guided cuts at several decoder layers, with recycled tokens (ICML 2025, arXiv 2410.04417)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..algorithm import flow
from ..algorithm.segments import columns_of
from ..algorithm.selection import best_first
from .base import Method
from .policies import DecoderPolicy
from .ranking import check_ranked
from .views import DecoderView, Recycled

RELEASED = {
    64: (66, 30, 17),
    96: (238, 48, 26),
    128: (303, 110, 36),
    192: (300, 200, 110),
    576: (576, 576, 576),
}
"""Tokens kept of 576 at each of the three cuts, by the average over 32 layers that they are quoted for."""


@dataclass(frozen=True)
class SparseVLM(Method):
    """SparseVLM's hyper-parameters, as in the released code. The vision tower is not cut.

    ``target_num`` is the paper's: about the average over a decoder of 32 layers, without the recycled tokens (which
    make 192 to about 204). What each cut keeps is interpolated between the released lists for 64, 96, 128 and 192 of
    576 tokens; the paper's rank-adaptive count is replaced by these lists in the released code too.

    Raters are the prompt's text tokens behind the image whose share of the image's similarity (``softmax`` over the
    text of ``v . t``, mean over the visual tokens, on the embeddings) is above the mean (section 3.2). A cut keeps
    the visual tokens to which the raters pay most attention; of the rest the best ``recycled_share`` are clustered by
    density peaks into one token for every ``cluster_size`` (section 3.4), each the mean of its members.

    A recycled token goes on at the place of its cluster's centre (released: behind all kept ones); ties in density are
    broken by order (released: by noise).

    Attributes:
        layers: the decoder layers after which it cuts.
        recycled_share: share of the cut tokens that are recycled, best first; 0 for none.
        cluster_size: recycled tokens for each merged one.
    """

    name: ClassVar[str] = "sparsevlm"
    summary: ClassVar[str] = "cuts after decoder layers 2, 6 and 15 by the attention of rating words; recycles tokens"
    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "ICML 2025, arXiv 2410.04417"
    reads_text: ClassVar[bool] = True
    cuts_tower: ClassVar[bool] = False

    layers: tuple[int, ...] = (2, 6, 15)
    recycled_share: float = 0.3
    cluster_size: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.layers) != sorted(set(self.layers)) or len(self.layers) != 3 or self.layers[0] < 0:
            raise ValueError(f"layers must be three ascending decoder layers, got {self.layers!r}.")
        if not 0.0 <= self.recycled_share <= 1.0:
            raise ValueError(f"recycled_share must lie in [0, 1], got {self.recycled_share!r}.")
        if self.cluster_size < 1:
            raise ValueError(f"cluster_size must be at least 1, got {self.cluster_size!r}.")

    def decoder_layers(self, second_cut: bool) -> tuple[int, ...]:
        return self.layers

    def decoder_policy(self) -> DecoderPolicy:
        return SparseVLMPolicy(self)


def kept_at(cut: int, tokens: int, target: int) -> int:
    """How many of an image's ``tokens`` stay at cut number ``cut`` (from 0), recycled ones not counted.

    Linear between the released lists (and nothing for 0), for images of any size; all where ``target`` covers them.
    """
    if target >= tokens:
        return tokens
    averages = [0, *RELEASED]
    kept = [0, *(counts[cut] for counts in RELEASED.values())]
    return max(1, round(float(np.interp(576 * target / tokens, averages, kept)) * tokens / 576))


def raters(visual: Tensor, text: Tensor) -> Tensor:
    """Which text tokens rate the visual ones: boolean ``[T]``.

    Args:
        visual: embeddings ``[N, width]``.
        text: embeddings ``[T, width]``.
    """
    share = (visual.float() @ text.float().T).softmax(dim=1).mean(dim=0)
    # Among equals (a single word, say) none is above the mean.
    return (share > share.mean()) | (share == share.max())


def attention_of_raters(view: DecoderView, row: int, rating: Tensor) -> Tensor:
    """Attention that the columns ``rating`` of a sample pay to all columns, mean over heads and raters, ``[S]``."""
    heads, shared = view.query.shape[1], view.key.shape[1]
    # The heads that share keys, as rows of one product.
    query = view.query[row][:, rating].reshape(shared, heads // shared * len(rating), -1)
    logits = flow.row_logits(query[None].float(), view.key[row : row + 1], view.scaling)
    place = torch.arange(view.key.shape[2], device=rating.device)
    unseen = place > rating[:, None]
    if view.real is not None:
        unseen |= ~view.real[row]
    weights = logits.view(heads, len(rating), -1).masked_fill(unseen, float("-inf")).softmax(dim=-1)
    return weights.mean(dim=(0, 1))


def density_peaks(tokens: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Cluster ``tokens`` ``[N, width]`` around density peaks (DPC-KNN).

    Returns:
        The centres ``[clusters]``, ascending, and the cluster of every token ``[N]``.
    """
    distance = torch.cdist(tokens.float(), tokens.float(), compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / tokens.shape[1] ** 0.5
    nearest = distance.topk(clusters, dim=1, largest=False).values
    density = (-nearest.square().mean(dim=1)).exp()
    # Of equals the first is denser.
    rank = density.argsort(descending=True, stable=True).argsort()
    denser = rank[None] < rank[:, None]
    to_denser = torch.where(denser, distance, distance.max()).min(dim=1).values
    centres = best_first(to_denser * density, clusters).sort().values
    assigned = distance[:, centres].argmin(dim=1)
    assigned[centres] = torch.arange(clusters, device=tokens.device)
    return centres, assigned


@dataclass
class Rated:
    """One image in a pass.

    Attributes:
        row: its sample.
        raters: columns of the uncut prompt that rate its tokens.
        entered: its tokens in front of the first cut.
        left: its tokens now, recycled ones included.
        recycled: the columns that the last cut took and that are recycled, ascending.
    """

    row: int
    raters: Tensor
    entered: int
    left: int
    recycled: Tensor | None = None


class SparseVLMPolicy(DecoderPolicy):
    """The cuts of one pass. The host waits where the text behind an image is looked for; later all counts are known."""

    def __init__(self, method: SparseVLM) -> None:
        self.method = method
        self.images: dict[int, Rated] = {}
        self._sourced = False

    def enter(self, hidden: Tensor, image: Tensor, last: Tensor) -> None:
        rows, ends = image.tolist(), last.tolist()
        for number, row in sorted({(number, row) for row, own in enumerate(rows) for number in own if number >= 0}):
            visual, text = places_of_image(rows[row], number, ends[row])
            columns = torch.tensor(visual + text, device=image.device)
            own, words = hidden[row, columns].tensor_split([len(visual)])
            rating = columns[len(visual) :][raters(own, words)]
            self.images[number] = Rated(row, rating, len(visual), len(visual))

    def select(self, view: DecoderView) -> Tensor:
        if not self._sourced:
            self._sourced = True
            for one in self.images.values():
                one.raters = view.source[one.row, one.raters]
        cut = self.method.layers.index(view.layer)
        keep = view.image < 0
        sums = []
        for number, one in self.images.items():
            own = columns_of(view.image[one.row] == number, one.left)
            kept = kept_at(cut, one.entered, view.targets[number])
            one.recycled = None
            if one.left > kept:
                rating = columns_of(torch.isin(view.source[one.row], one.raters), len(one.raters))
                scores = attention_of_raters(view, one.row, rating)[own]
                sums.append(scores.sum())
                own = own[scores.argsort(descending=True, stable=True)]
                recycled = min(one.left - kept, int((one.left - kept) * self.method.recycled_share) + 1)
                one.recycled, one.left = own[kept : kept + recycled].sort().values, kept
            keep[one.row].index_fill_(0, own[:kept], True)
        if sums:
            check_ranked(view.layer, reduce(torch.add, sums))
        return keep

    def recycle(self, layer: int, hidden: Tensor) -> list[Recycled]:
        if not self.method.recycled_share:
            return []
        recycled = []
        for one in self.images.values():
            if one.recycled is not None:
                clusters = len(one.recycled) // self.method.cluster_size + 1
                centres, cluster = density_peaks(hidden[one.row, one.recycled], clusters)
                recycled.append(Recycled(one.row, one.recycled, cluster, one.recycled[centres]))
                one.left += len(centres)
        return recycled


def places_of_image(images: list[int], number: int, end: int) -> tuple[list[int], list[int]]:
    """The columns of an image in its sample, and those of the text behind it; of the last token where none follows.

    Args:
        images: the image of every column, -1 for text.
        number: the image's.
        end: the last column of the prompt.
    """
    visual = [column for column, own in enumerate(images) if own == number]
    text = [column for column in range(visual[-1] + 1, end + 1) if images[column] < 0]
    return visual, text or [end]
