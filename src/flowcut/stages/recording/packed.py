"""One packed sequence of pictures on its way through a tower (Qwen2-VL), looked at."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...algorithm.looking import redundancy
from ...methods.flowcut import FlowCut
from ...methods.views import LayerView
from ...models.base import ImageLayout, ModelParts
from ...models.packed_towers import by_group
from ...trace import ImageFlow, TileFlow
from .batched import check_layers, entropy_ratios
from .policy import RecordingPolicy, Watching


class PackedRecording:
    """A packed sequence; q, k, v of a layer may come segment by segment.

    Args:
        parts: the model.
        grids: (time, height, width) of every image, in patches.
        order: see :class:`~flowcut.models.base.Packing`.
        device: where it runs.
        received: see :class:`Watching`.
        rows: where the patches stand, if the tower takes images as rows of a batch, see
            :class:`~flowcut.models.base.Packing`.
    """

    def __init__(
        self,
        parts: ModelParts,
        grids: list[tuple[int, ...]],
        order: Tensor | None,
        device: torch.device,
        received: bool,
        rows: Tensor | None = None,
    ) -> None:
        assert parts.tower.packing is not None
        self.second_cut = parts.second_cut
        self.packing = parts.tower.packing
        self.rows = None if rows is None else rows.to(device)
        self.grids = grids
        self.order = None if order is None else order.cpu()
        self.depth = len(parts.tower.layers)
        self.counts = [grid[0] * grid[1] * grid[2] for grid in grids]
        self.side = round(self.packing.group**0.5)
        self.units = [self._patches_of_units(grid) for grid in grids]
        # Where patches of a group do not follow one another, they stand in the rows of their picture.
        apart = self.packing.arrange is not None and self.side > 1
        self.policies = [
            RecordingPolicy(
                Watching(
                    regroup=units.flatten().to(device) if apart else None, unit=self.packing.group, received=received
                ),
                self.depth + 1,
            )
            for units in self.units
        ]
        self.in_groups = self.packing.arrange is None
        self.chunks: list[tuple[Tensor, ...]] = []
        self.redundancy: list[list[Tensor]] = []

    def _patches_of_units(self, grid: tuple[int, ...]) -> Tensor:
        """The patches of each group, row by row, int64 ``[groups, patches in each]``."""
        order = by_group(self.side, torch.tensor([grid]))
        patches = torch.arange(grid[0] * grid[1] * grid[2]) if order is None else order
        return patches.reshape(-1, self.packing.group)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any) -> Any:
        """Collect a layer's q, k, v; complete, they are looked at. Its mask stays what it is."""
        states = [state.detach() for state in (query, key, value)]
        if self.rows is not None:
            # Rows of a batch, without what fills them up, laid end to end.
            laid = (state.transpose(1, 2).flatten(0, 1).index_select(0, self.rows) for state in states)
            states = [state.transpose(0, 1)[None] for state in laid]
        self.chunks.append(tuple(states))
        if sum(chunk[0].shape[2] for chunk in self.chunks) == sum(self.counts):
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                self._look(layer, scaling)
        return mask

    def _look(self, layer: int, scaling: float) -> None:
        chunks, self.chunks = self.chunks, []
        states = [parts[0] if len(parts) == 1 else torch.cat(parts, dim=2) for parts in zip(*chunks, strict=True)]
        of_images = zip(*(state.split(self.counts, dim=2) for state in states), strict=True)
        for policy, (query, key, value) in zip(self.policies, of_images, strict=True):
            policy.observe(LayerView(layer, query, key, value, scaling, 0, None, self.packing.group))

    def narrowing(self, layer: int) -> None:
        """Every token goes on."""

    def put_out(self, hidden: Tensor) -> None:
        """Look at what a layer put out, ``[..., S, width]``."""
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            flat = hidden.reshape(-1, hidden.shape[-1])
            rows = torch.split(flat if self.rows is None else flat.index_select(0, self.rows), self.counts)
            self.redundancy.append([redundancy(states[None])[0] for states in rows])

    def finish(self, modality: str) -> list[ImageFlow]:
        """What was seen of every image; see :meth:`BatchedRecording.finish`."""
        images, first = [], 0
        for number, (grid, units) in enumerate(zip(self.grids, self.units, strict=True)):
            own = torch.arange(len(units))
            if self.order is not None:
                own = self.order[first : first + len(units)] - first
            first += len(units)
            shape = (grid[0], grid[1] // self.side, grid[2] // self.side)
            layout = ImageLayout(1, shape, torch.arange(len(units)), complete=True)
            tile = self._tile(number, grid, shape, units, own)
            images.append(ImageFlow(modality, (tile,), layout, partial(targets, len(units), self.second_cut)))
        return images

    def _tile(self, number: int, grid: tuple[int, ...], shape: tuple[int, ...], units: Tensor, own: Tensor) -> TileFlow:
        numbers = self.policies[number].finish()
        similar = torch.stack([of_images[number] for of_images in self.redundancy]).cpu()
        check_layers(numbers, len(similar))
        # The place in the sequence of every patch, and of every unit.
        patch_at = (units[own].flatten() if self.in_groups else torch.arange(self.counts[number])).argsort()
        unit_at = own.argsort() if self.in_groups else torch.arange(len(units))
        return TileFlow(
            grid=grid,
            unit_grid=shape,
            patches_of_unit=units,
            global_token="mean",
            layers_read=self.depth,
            feature_layer=self.depth + 1,
            relation=numbers.relation[0][:, patch_at],
            semantic=numbers.semantic[0][:, patch_at],
            density=numbers.density[0][:, patch_at],
            score=numbers.score[0][:, patch_at],
            importance=numbers.importance[0][:, unit_at],
            entropy_ratio=entropy_ratios(numbers.entropy[0], self.counts[number]),
            redundancy=similar[:, patch_at],
            to_global=None if numbers.to_global is None else numbers.to_global[0][:, patch_at],
        )


def targets(groups: int, second_cut: bool, method: FlowCut) -> tuple[int, ...]:
    """Merge groups of an image that leave the tower."""
    return (method.packed_target(method.tokens_to_keep(groups), groups, second_cut),)
