"""Patches in the padding of a picture's tiles, hidden from the method that chooses among the others.

No visual token stands for them: the model drops them behind the tower. They take part in the tower's attention as in
the uncut model, but a method neither sees nor chooses them. A tile's padding leaves the tower with the first cut of
that tile, or behind the last layer that is read, where nothing else of it is cut.

Every method's policy expects images of equally many patches. So tiles with equally many patches outside the padding
share a policy, which is shown these alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...algorithm.selection import counts_mask, gather_tokens, with_prefix
from ...methods.base import Method
from ...methods.policies import VisionPolicy
from ...methods.saliency import ragged
from ...methods.views import LayerView, Merge, OutputView, Selection, TowerPass


def policy_for(method: Method, tower: TowerPass, eligible: Tensor | None) -> VisionPolicy:
    """The method's policy for one pass.

    Args:
        method: what cuts.
        tower: the pass.
        eligible: boolean ``[B, N]``, the patches that may be chosen; at least ``tower.targets`` of every row, or none;
            ``None`` where all may.
    """
    if eligible is None or bool(eligible.all()):
        return method.vision_policy(tower)
    return UnpaddedPolicy(method, tower, eligible)


@dataclass
class TileGroup:
    """Tiles with equally many patches outside the padding.

    Attributes:
        rows: their rows in the batch, int64 ``[R]``.
        places: those patches, int64 ``[R, N]``.
        policy: what chooses among them; ``None`` where nothing is cut.
        counts: how many of them are left of every tile.
        unpadded: whether a tile's padding has left the tower, for every tile.
    """

    rows: Tensor
    places: Tensor
    policy: VisionPolicy | None
    counts: list[int] = field(init=False)
    unpadded: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [self.places.shape[1]] * len(self.rows)
        self.unpadded = [False] * len(self.rows)

    def here(self, number: int) -> Tensor:
        """Where the patches of tile ``number`` that are left stand among all of its tokens that are."""
        if self.unpadded[number]:
            return torch.arange(self.counts[number], device=self.places.device)
        return self.places[number]

    def index(self) -> tuple[Tensor, Tensor | None]:
        """:meth:`here` for all tiles, ``[R, K]`` filled up with 0, and which entries are real where not all are."""
        if not any(self.unpadded):
            return self.places, None
        chosen = ragged([self.here(number) for number in range(len(self.rows))])
        if min(self.counts) == max(self.counts):
            return chosen.index, None
        return chosen.index, counts_mask(self.counts, chosen.index.shape[1], chosen.index.device)


class UnpaddedPolicy(VisionPolicy):
    """A method's policies for tiles with padding; see :func:`policy_for`."""

    def __init__(self, method: Method, tower: TowerPass, eligible: Tensor) -> None:
        self.tower = tower
        self.counts = [tower.patches] * len(tower.targets)
        self.groups: list[TileGroup] = []
        room = eligible.sum(dim=1)
        for count in sorted(set(room.tolist()) - {0}):
            rows = (room == count).nonzero()[:, 0]
            places = eligible[rows].nonzero()[:, 1].reshape(len(rows), count)
            policy = self._policy(method, count, rows.tolist())
            self.groups.append(TileGroup(rows.to(tower.device), places.to(tower.device), policy))
        self.padding: list[int] = (room == 0).nonzero()[:, 0].tolist()

    def _policy(self, method: Method, patches: int, rows: list[int]) -> VisionPolicy | None:
        """The policy for tiles of so many patches; ``None`` where nothing of them is cut or ranked."""
        targets = tuple(self.tower.targets[row] for row in rows)
        if not (self.tower.ranks or method.cuts_projected) and min(targets) == patches:
            return None

        def seeds() -> tuple[int, ...]:
            of_all = self.tower.seeds()
            return tuple(of_all[row] for row in rows)

        return method.vision_policy(replace(self.tower, patches=patches, targets=targets, frames=(), seeds=seeds))

    def observe(self, view: LayerView) -> None:
        for group in self.groups:
            if group.policy is None:
                continue
            index, valid = group.index()
            index = with_prefix(index, view.prefix)
            if valid is not None:
                valid = torch.nn.functional.pad(valid, (view.prefix, 0), value=True)
            query, key, value = (
                gather_tokens(states[group.rows].transpose(1, 2), index).transpose(1, 2)
                for states in (view.query, view.key, view.value)
            )
            group.policy.observe(LayerView(view.layer, query, key, value, view.scaling, view.prefix, valid))

    def bias(self, layer: int) -> Tensor | None:
        biases = [None if group.policy is None else group.policy.bias(layer) for group in self.groups]
        return self._spread(biases, max(self.counts))

    def select(self, layer: int) -> Selection | None:
        answers = [None if group.policy is None else group.policy.select(layer) for group in self.groups]
        if all(answer is None for answer in answers) and any(group.policy is not None for group in self.groups):
            return None
        return self._joined(layer, answers)

    def reduce(self, view: OutputView) -> Selection | Merge | None:
        answers: list[Selection | None] = []
        for group in self.groups:
            if group.policy is None:
                answers.append(None)
                continue
            states = gather_tokens(view.states[group.rows], group.index()[0])
            answers.append(group.policy.reduce(OutputView(view.layer, states, tuple(group.counts))))
        return self._joined(view.layer, answers)

    def rank(self) -> Tensor:
        ranked = [None if group.policy is None else group.policy.rank() for group in self.groups]
        importance = self._spread(ranked, max(self.counts))
        assert importance is not None
        return importance

    def handed_on(self) -> Tensor | None:
        given = [None if group.policy is None else group.policy.handed_on() for group in self.groups]
        return self._spread(given, max(self.counts))

    def _spread(self, values: list[Tensor | None], width: int) -> Tensor | None:
        """Values of the groups' patches ``[R, K, ...]`` at their places, ``[B, width, ...]``, and 0 elsewhere."""
        given = next((value for value in values if value is not None), None)
        if given is None:
            return None
        spread = given.new_zeros(len(self.counts), width, *given.shape[2:])
        for group, value in zip(self.groups, values, strict=True):
            if value is None:
                continue
            for number, row in enumerate(group.rows.tolist()):
                here = group.here(number)
                spread[row, here] = value[number, : len(here)]
        return spread

    def _joined(self, layer: int, answers: list[Selection | None]) -> Selection | Merge | None:
        """What goes on of all tiles, given what the groups' policies answered."""
        last = layer == self.tower.last_layer
        before, device = self.counts, self.tower.device
        rows = [torch.arange(1 if last and row in self.padding else count) for row, count in enumerate(before)]
        merged: dict[int, tuple[Tensor, Tensor]] = {}
        for group, answer in zip(self.groups, answers, strict=True):
            for number, row in enumerate(group.rows.tolist()):
                here, count = group.here(number), group.counts[number]
                after = count if answer is None else answer.counts[number]
                if answer is not None and after < count:
                    rows[row] = here[answer.index[number, :after].to(here.device)]
                    if isinstance(answer, Merge):
                        merged[row] = (here, answer.weights[number, :after, :count])
                elif last or group.unpadded[number]:
                    rows[row] = here
                group.unpadded[number] |= after < count or last
                group.counts[number] = after
        self.counts = [len(row) for row in rows]
        if self.counts == before:
            return None
        chosen = ragged([row.to(device) for row in rows])
        if not merged:
            return chosen
        weights = torch.zeros(len(rows), max(self.counts), max(before), device=device)
        for row, kept in enumerate(rows):
            if row in merged:
                sources, own = merged[row]
                weights[row, : len(kept)] = weights[row, : len(kept)].index_copy(1, sources, own.to(weights))
            else:
                weights[row, torch.arange(len(kept), device=device), kept.to(device)] = 1.0
        return Merge(chosen.index, chosen.counts, weights)
