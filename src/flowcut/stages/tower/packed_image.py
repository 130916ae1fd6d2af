"""One image in a vision tower that packs images of any size into one sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...methods.base import Method
from ...methods.policies import VisionPolicy
from ...methods.views import LayerView, Merge, OutputView, Selection, TowerPass
from ...models.base import ImageLayout, Packing
from ...trace import ImageTrace, TileTrace
from .narrowing import sources_after


@dataclass(frozen=True)
class Reduction:
    """What of one image goes on behind a layer that was chosen from its output.

    Attributes:
        count: its patches before.
        kept: those that stay, as positions among them, ascending; int64.
        weights: ``[K, N]`` where units are merged: the weight of every unit before in each one that goes on.
    """

    count: int
    kept: Tensor
    weights: Tensor | None = None

    def narrow(self, hidden: Tensor) -> Tensor:
        """The image's states ``[count, width]`` reduced to those that go on."""
        if self.weights is None:
            return hidden[self.kept.to(hidden.device)]
        units = hidden.reshape(self.weights.shape[1], -1)
        with torch.autocast(hidden.device.type, enabled=False):
            merged = torch.matmul(self.weights.to(hidden.device), units.float()).to(hidden.dtype)
        return merged.reshape(len(self.kept), -1)


class PackedImage:
    """One image or video on its way through the tower; it is cut in units: merge groups, or single patches.

    Attributes:
        groups: merge groups of the uncut image.
        budget: how many visual tokens may stay in the end.
        size: patches in one unit.
        alive: units that are left, in the tower's order; int64.
    """

    def __init__(self, method: Method, grid: tuple[int, ...], packing: Packing, second_cut: bool) -> None:
        self.grid = grid
        self.packing = packing
        self.patches = grid[0] * grid[1] * grid[2]
        self.groups = self.patches // packing.group
        self.budget = method.tokens_to_keep(self.groups)
        self.size = packing.group if method.cuts_groups() else 1
        self.units = self.patches // self.size
        self.seeds: Callable[[], tuple[int, ...]] = tuple
        self.model = ""
        self.sources: Tensor | None = None
        self.cut_behind: list[int] = []
        self.tokens = self.groups
        if method.cuts_tower:
            self.tokens = method.packed_target(self.budget, self.groups, second_cut)
        self.target = self.tokens * packing.group // self.size
        self.alive = torch.arange(self.units)
        self.policy: VisionPolicy | None = None
        self.alive_after: dict[int, Tensor] = {}
        self.counts_after: list[int] = []
        self.pairs: list[int] = []
        self.uncut_pairs: list[int] = []

    @property
    def cut(self) -> bool:
        """Whether the tower cuts anything of it."""
        return self.target < self.units

    @property
    def count(self) -> int:
        """Patches that are left."""
        return len(self.alive) * self.size

    def choose(self, view: LayerView, depth: int, method: Method) -> Tensor | None:
        """Let the image's policy see a layer; the patches that stay, as positions among its own, or ``None``."""
        if self.policy is None:
            tower = TowerPass(
                self.units,
                (self.target,),
                depth + 1,
                view.query.device,
                packed=True,
                model=self.model,
                seeds=self.seeds,
            )
            self.policy = method.vision_policy(tower)
        self.policy.observe(view)
        selection: Selection | None = self.policy.select(view.layer)
        if selection is None:
            return None
        return self._take(view.layer, selection)

    def bias(self, layer: int) -> Tensor | None:
        """What the policy adds to the attention logits of every unit's keys, ``[units]``, or ``None``."""
        bias = None if self.policy is None else self.policy.bias(layer)
        return None if bias is None else bias[0]

    def reduce(self, layer: int, states: Tensor) -> Reduction:
        """Let the policy choose from the output ``[count, width]`` of a layer."""
        units = len(self.alive)
        selection = None
        if self.policy is not None:
            selection = self.policy.reduce(OutputView(layer, states.reshape(1, units, -1), (units,)))
        if selection is None:
            return Reduction(len(states), torch.arange(len(states), device=states.device))
        self.cut_behind.append(layer)
        kept = self._take(layer, selection)
        return Reduction(len(states), kept, selection.weights[0] if isinstance(selection, Merge) else None)

    def _take(self, layer: int, selection: Selection) -> Tensor:
        """Keep the books of a cut; the patches that stay."""
        units = selection.index[0, : selection.counts[0]]
        self.sources = sources_after(self.sources, selection)
        self.alive = self.alive.to(units.device)[units]
        self.alive_after[layer] = self.alive
        return (units[:, None] * self.size + torch.arange(self.size, device=units.device)).flatten()

    def places(self) -> Tensor:
        """The groups, in the tower's order, at whose places the merged tokens stand."""
        return self.alive if self.size > 1 else torch.arange(self.tokens)

    def trace(self, order: Tensor | None) -> ImageTrace:
        """What happened; ``order`` holds the image's group at every place of the tower's sequence."""

        def original(units: Tensor, size: int, sort: bool = True) -> Tensor:
            if order is not None:
                per_group = self.packing.group // size
                units = order.to(units.device)[units // per_group] * per_group + units % per_group
            return units.sort().values if sort else units

        rows = original(self.alive, self.size, sort=False).argsort()
        handed_on = None if self.policy is None else self.policy.handed_on()
        columns = original(torch.arange(self.units, device=self.alive.device), self.size, sort=False).argsort()
        kept = torch.zeros(self.groups, dtype=torch.bool, device=self.alive.device)
        kept[original(self.places().to(kept.device), self.packing.group) if self.cut else slice(None)] = True
        side = round(self.size**0.5)
        grid = (self.grid[0], self.grid[1] // side, self.grid[2] // side)
        tile = TileTrace(
            kept=original(self.alive, self.size),
            patches=self.units,
            tokens_after_layer=self.counts_after,
            layers_run=len(self.counts_after),
            kept_after_layer={layer: original(alive, self.size) for layer, alive in self.alive_after.items()},
            unit=self.size,
            pairs_in_layer=self.pairs,
            uncut_pairs=self.uncut_pairs,
            cut_behind=tuple(self.cut_behind),
            merged=None if self.sources is None else self.sources[0, rows][:, columns],
            handed_on=None if handed_on is None else handed_on[0, rows],
        )
        layout = ImageLayout(1, grid, torch.arange(self.groups), complete=True, spread=self.packing.restores)
        return ImageTrace((tile,), layout, kept, self.tokens, self.budget)


def pairs_of_images(bounds: Tensor, counts: list[int]) -> Tensor:
    """(query, key) pairs of an attention within segments, for every image.

    Args:
        bounds: where segments begin and end in the packed sequence (``cu_seqlens``), none of them empty.
        counts: tokens of every image; each consists of whole segments.

    Returns:
        int64 ``[images]``.
    """
    lengths = bounds.diff().long()
    ends = torch.tensor(counts, device=bounds.device).cumsum(0)
    image = torch.searchsorted(ends, bounds[:-1].long(), right=True)
    return torch.zeros_like(ends).index_add(0, image, lengths * lengths)
