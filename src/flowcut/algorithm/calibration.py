"""How many tokens every cut takes where that is known beforehand. Pure functions.

The adaptive schedule cuts ``(N - T) / sqrt(remaining) * (1 - ratio^2)`` patches, where only the ratio (the entropy of
the global token's attention, relative to its maximum) depends on the picture. A calibration holds what it is on
average, so that the same formula gives fixed numbers, for any number of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import schedule


@dataclass(frozen=True)
class Calibration:
    """Mean ratios of some pictures.

    Attributes:
        feature_layer: see :func:`~flowcut.algorithm.schedule.layers_to_last_cut`.
        every: layers between two cuts, ``None`` for a single one.
        shares: the budgets that were tried, as shares of the patches, ascending.
        ratios: for each of them one number for every cut but the last, in the order of the layers: the root of the mean
            square of the ratios.
    """

    feature_layer: int
    every: int | None
    shares: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]

    def ratios_at(self, share: float) -> list[float]:
        """The ratios for a budget of ``share`` of the patches, between those that were tried."""
        return [float(np.interp(share, self.shares, cut)) for cut in zip(*self.ratios, strict=True)]


def cutting_layers(feature_layer: int, every: int | None) -> list[int]:
    """The layers after which tokens are cut."""
    return [layer for layer in range(feature_layer) if schedule.cuts_after(layer, feature_layer, every)]


def fixed_counts(calibration: Calibration, patches: int, target: int) -> list[int]:
    """How many of ``patches`` patches every cut takes, down to ``target``."""
    counts, left = [], patches
    ratios = [*calibration.ratios_at(target / patches), 1.0]
    layers = cutting_layers(calibration.feature_layer, calibration.every)
    for layer, ratio in zip(layers, ratios, strict=True):
        remaining = schedule.layers_to_last_cut(layer, calibration.feature_layer)
        (cut,) = schedule.cut_count(np.array([ratio], dtype=np.float32), [left], [target], remaining)
        counts.append(cut)
        left -= cut
    return counts


def ratios_of(after: Sequence[int], target: int, feature_layer: int, every: int | None) -> list[float]:
    """``1 - ratio^2`` at every cut but the last, from what the adaptive schedule did to one picture.

    Args:
        after: patches before the first layer, then after every one.
        target: those that stay in the end.
        feature_layer, every: see :class:`Calibration`.
    """
    found = []
    for layer in cutting_layers(feature_layer, every)[:-1]:
        surplus = after[layer] - target
        remaining = schedule.layers_to_last_cut(layer, feature_layer)
        found.append((after[layer] - after[layer + 1]) / surplus * remaining**0.5 if surplus else 0.0)
    return found


def averaged(found: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The ratios of a calibration from :func:`ratios_of` of its pictures."""
    return tuple(float(max(0.0, 1.0 - mean) ** 0.5) for mean in np.mean(np.asarray(found), axis=0))
