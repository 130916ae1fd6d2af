"""ToMe: similar tokens are merged in every vision layer (ICLR 2023, arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Method
from .policies import VisionPolicy
from .saliency import check_finite, mean_keys, ragged, unit
from .views import LayerView, Merge, OutputView, TowerPass


@dataclass(frozen=True)
class ToMe(Method):
    """Bipartite soft matching by keys, as many merges in every layer that is read, until the budget is reached.

    As released: tokens alternate between two sets; the best matches from the first set into the second are merged,
    weighted by how many patches each token stands for; layers attend in proportion to that size. The CLS token is never
    merged.

    Differences: tokens are merged behind a layer and not between its attention and its MLP, which transformers' layers
    offer no place for, so that the MLP costs as much as without. A token stands at the place of the patch it was merged
    into. Where groups of patches are cut (pixel shuffle, Qwen), groups are merged. Features that Qwen3-VL reads from
    the middle of its tower are those of the patches that stand for a token.

    Attributes:
        proportional: add log(size) to the attention logits. Needs ``sdpa`` or ``eager`` attention in the tower.
    """

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "similar tokens merged in every vision layer"
    stage: ClassVar[str] = "tower"
    paper: ClassVar[str] = "ICLR 2023, arXiv 2210.09461"

    proportional: bool = True

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        return ToMePolicy(self, tower)


class ToMePolicy(VisionPolicy):
    """Keeps, for every image, the sizes of its tokens and their order in ToMe's own sequence."""

    def __init__(self, method: ToMe, tower: TowerPass) -> None:
        self.proportional = method.proportional
        self.last_layer = tower.last_layer
        self.plans = [merging_plan(tower.patches, target, tower.last_layer + 1) for target in tower.targets]
        self.sizes = [torch.ones(tower.patches, device=tower.device) for _ in tower.targets]
        self.orders = [torch.arange(tower.patches, device=tower.device) for _ in tower.targets]
        self.has_cls = False
        self.keys: Tensor | None = None
        self.merged = False

    def observe(self, view: LayerView) -> None:
        self.keys, self.has_cls = mean_keys(view), view.prefix > 0

    def bias(self, layer: int) -> Tensor | None:
        if not self.proportional or not self.merged:
            return None
        bias = self.sizes[0].new_zeros(len(self.sizes), max(len(size) for size in self.sizes))
        for row, size in enumerate(self.sizes):
            bias[row, : len(size)] = size.log()
        return bias

    def reduce(self, view: OutputView) -> Merge | None:
        counts = [plan[view.layer] for plan in self.plans]
        assert self.keys is not None
        if view.layer == self.last_layer:
            check_finite(view.layer, self.keys)
        if counts == list(view.counts):
            return None
        self.merged = True
        rows, weights = [], self.keys.new_zeros(len(counts), max(counts), self.keys.shape[1])
        for row, (before, after) in enumerate(zip(view.counts, counts, strict=True)):
            order, size = self.orders[row], self.sizes[row]
            keys = self.keys[row, :before][order]
            stay, source, target = bipartite_soft_matching(keys, before - after, self.has_cls)
            index, own, rank = merge_matrix(size, order[source], order[target])
            rows.append(index)
            weights[row, :after, :before] = own / own.sum(dim=1, keepdim=True)
            self.sizes[row] = own.sum(dim=1)
            self.orders[row] = rank[order[stay]]
        chosen = ragged(rows)
        return Merge(chosen.index, chosen.counts, weights)


def merging_plan(patches: int, target: int, layers: int) -> list[int]:
    """Tokens left behind every layer: equal steps from ``patches`` to ``target``, as far as halving allows.

    Raises:
        ValueError: halving in every layer does not reach the target.
    """
    counts, before = [], patches
    for layer in range(layers):
        equal = patches - (layer + 1) * (patches - target) // layers
        before = max(before - before // 2, min(equal, target << (layers - 1 - layer)))
        counts.append(before)
    if before != target:
        raise ValueError(
            f"ToMe halves the tokens of a layer at most: {patches} patches become no fewer than {before} in {layers} "
            f"layers, but {target} are asked for. Give a larger budget."
        )
    return counts


def bipartite_soft_matching(keys: Tensor, merges: int, has_cls: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens of one image are merged into which.

    Args:
        keys: ``[N, D]``, in the order in which tokens alternate between the two sets.
        merges: how many tokens disappear, at most N // 2.
        has_cls: whether a CLS token, not given here, stands in front and takes a place in the first set.

    Returns:
        Positions: the tokens that stay, in ToMe's order behind the layer (first the unmerged of the first set, then the
        second set; as it was, where nothing is merged); ``[merges]`` those merged, and ``[merges]`` what each is merged
        into.
    """
    places = torch.arange(len(keys), device=keys.device)
    if not merges:
        return places, places[:0], places[:0]
    first, second = (places[1::2], places[::2]) if has_cls else (places[::2], places[1::2])
    normed = unit(keys)
    best, partner = (normed[first] @ normed[second].T).max(dim=1)
    ranking = best.argsort(descending=True, stable=True)
    unmerged = ranking[merges:]
    if has_cls:
        unmerged = unmerged.sort().values
    merged = ranking[:merges]
    return torch.cat([first[unmerged], second]), first[merged], second[partner[merged]]


def merge_matrix(size: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens that stay, and what goes into each.

    Args:
        size: ``[N]``, patches that every token stands for.
        source, target: ``[M]``: token ``source[m]`` is merged into ``target[m]``.

    Returns:
        ``[K]`` ascending, ``[K, N]`` sizes that go into each, and ``[N]`` the place of every token among the K.
    """
    matrix = torch.diag(size).index_put((target, source), size[source], accumulate=True)
    stays = torch.ones_like(size, dtype=torch.bool).index_fill(0, source, False)
    index = stays.to(torch.uint8).sort(descending=True, stable=True).indices[: len(size) - len(source)]
    return index, matrix[index], stays.long().cumsum(0) - 1
