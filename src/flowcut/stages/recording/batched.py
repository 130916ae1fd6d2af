"""One batch of pictures, tiles or frames on its way through a tower, looked at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ...algorithm import schedule
from ...algorithm.looking import redundancy
from ...errors import FlowCutError, UnsupportedModelError
from ...methods.flowcut import FlowCut
from ...methods.views import LayerView, TowerPass
from ...models.base import FeatureChoice, ImageLayout, VisionTower
from ...trace import ImageFlow, TileFlow
from ..tower.padding import UnpaddedPolicy, policy_for
from ..tower.tiles import outside_padding, plan_image
from .policy import Numbers, RecordingPolicy, Watching


class BatchedRecording:
    """A batch whose rows have equally many patches.

    Args:
        tower: the tower.
        second_cut: see :class:`~flowcut.models.base.ModelParts`.
        choice: what the model reads of it.
        layouts: how the images become visual tokens.
        grid: (height, width) of a row, in patches.
        device: where it runs.
        received: see :class:`Watching`.
    """

    def __init__(
        self,
        tower: VisionTower,
        second_cut: bool,
        choice: FeatureChoice,
        layouts: list[ImageLayout],
        grid: tuple[int, int],
        device: torch.device,
        received: bool,
    ) -> None:
        self.tower = tower
        self.second_cut = second_cut
        self.choice = choice
        self.layouts = layouts
        self.grid = grid
        self.patches = grid[0] * grid[1]
        order = layouts[0].order if layouts else None
        self.units = torch.arange(self.patches)[:, None] if order is None else order.cpu()
        regroup = None if order is None else order.flatten().to(device)
        method = Watching(regroup=regroup, unit=self.units.shape[1], received=received)
        rows = sum(layout.tiles for layout in layouts)
        eligible = None
        if any(padded(layout) for layout in layouts):
            eligible = torch.cat([eligible_of(layout, self.patches) for layout in layouts])
        self.valid = None if eligible is None or bool(eligible.all()) else eligible.to(device)
        self.feature_layer = max(choice.layers)
        counts = (self.patches,) * rows
        self.policy = policy_for(
            method, TowerPass(self.patches, counts, self.feature_layer, device, ranks=True), eligible
        )
        self.redundancy: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any) -> Any:
        """Look at a layer's q, k, v; its mask stays what it is."""
        if mask is not None:
            raise UnsupportedModelError(
                "A picture is padded inside its tile (the tower was called with an attention mask), and what flows "
                "there is not recorded. Give pictures that fill their tiles."
            )
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            self.policy.observe(LayerView(layer, query, key, value, scaling, self.tower.prefix, None))
        return mask

    def narrowing(self, layer: int) -> None:
        """Every token goes on."""

    def put_out(self, hidden: Tensor) -> None:
        """Look at what a layer put out, ``[B, S, width]``."""
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            self.redundancy.append(redundancy(hidden[:, self.tower.prefix :], self.valid))

    def finish(self, modality: str) -> list[ImageFlow]:
        """What was seen of every image.

        Raises:
            FlowCutError: a layer's attention was not seen.
        """
        similar = torch.stack(self.redundancy, dim=1).cpu()
        tiles = iter(self._tiles(similar))
        return [
            ImageFlow(
                modality,
                tuple(islice(tiles, layout.tiles)),
                layout,
                partial(targets, layout, len(self.units), self.choice, self.second_cut),
            )
            for layout in self.layouts
        ]

    def _tiles(self, similar: Tensor) -> list[TileFlow]:
        groups: list[tuple[list[int], Tensor | None, Numbers]] = []
        if isinstance(self.policy, UnpaddedPolicy):
            for group in self.policy.groups:
                assert isinstance(group.policy, RecordingPolicy)
                groups.append((group.rows.tolist(), group.places.cpu(), group.policy.finish()))
        else:
            assert isinstance(self.policy, RecordingPolicy)
            groups.append((list(range(len(similar))), None, self.policy.finish()))
        tiles: dict[int, TileFlow] = {}
        for rows, places, numbers in groups:
            check_layers(numbers, similar.shape[1])
            for number, row in enumerate(rows):
                tiles[row] = self._tile(number, numbers, None if places is None else places[number], similar[row])
        for row in set(range(len(similar))) - set(tiles):
            tiles[row] = self._padding(similar[row])
        return [tiles[row] for row in range(len(similar))]

    def _tile(self, number: int, numbers: Numbers, places: Tensor | None, similar: Tensor) -> TileFlow:
        def laid(values: Tensor) -> Tensor:
            own = values[number]
            if places is None:
                return own.contiguous()
            return own.new_full((len(own), self.patches), float("nan")).index_copy(1, places, own)

        return self._flow(laid, numbers, similar, entropy_ratios(numbers.entropy[number], numbers.relation.shape[-1]))

    def _padding(self, similar: Tensor) -> TileFlow:
        """A tile that no visual token stands for."""
        nothing = torch.full((len(similar), self.patches), float("nan"))
        numbers = Numbers(nothing, nothing, nothing, nothing, nothing, nothing, None)
        return self._flow(lambda values: values, numbers, similar, nothing[:, 0])

    def _flow(
        self, laid: Callable[[Tensor], Tensor], numbers: Numbers, similar: Tensor, entropy_ratio: Tensor
    ) -> TileFlow:
        return TileFlow(
            grid=self.grid,
            unit_grid=self.layouts[0].grid[-2:] if self.units.shape[1] > 1 else self.grid,
            patches_of_unit=self.units,
            global_token="CLS" if self.tower.prefix else "mean",
            layers_read=self.feature_layer,
            feature_layer=self.feature_layer,
            relation=laid(numbers.relation),
            semantic=laid(numbers.semantic),
            density=laid(numbers.density),
            score=laid(numbers.score),
            importance=laid(numbers.importance),
            entropy_ratio=entropy_ratio,
            redundancy=similar,
            to_global=None if numbers.to_global is None else laid(numbers.to_global),
        )


def targets(
    layout: ImageLayout, units: int, choice: FeatureChoice, second_cut: bool, method: FlowCut
) -> tuple[int, ...]:
    """Units of every tile of an image that leave the tower."""
    return plan_image(method, layout, units, choice, second_cut).targets


def padded(layout: ImageLayout) -> bool:
    """Whether some of an image's patches may stand in the padding of its tiles, which FlowCut does not see."""
    return not layout.complete and layout.pooled is None and layout.blend is None


def eligible_of(layout: ImageLayout, patches: int) -> Tensor:
    """Boolean ``[tiles, patches]``: those outside the padding."""
    return outside_padding(layout, patches) if padded(layout) else torch.ones(layout.tiles, patches, dtype=torch.bool)


def check_layers(numbers: Numbers, layers: int) -> None:
    """Make sure that the attention of every layer that ran was seen.

    Raises:
        FlowCutError: it was not.
    """
    seen = numbers.relation.shape[1]
    if seen != layers:
        raise FlowCutError(
            f"The attention of {seen} of {layers} vision layers that ran was seen: the others no longer go through "
            "transformers' attention interface. Undo what replaced their forward, or observe behind that change."
        )


def entropy_ratios(entropies: Tensor, patches: int) -> Tensor:
    """``H / ln N`` of every layer, ``[L]``."""
    return torch.from_numpy(schedule.entropy_ratio(entropies.tolist(), [patches] * len(entropies)))
