"""A fixed schedule for a model, from what the adaptive one does to some pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..algorithm.calibration import Calibration, averaged, ratios_of
from ..attaching import attach
from ..checkpoints.loading import LoadedModel
from ..errors import NotAppliedError
from ..inputs.prompting import model_inputs
from ..methods import FlowCut
from ..models import find_parts
from ..trace import ImageTrace, TileTrace

SHARES = (1 / 18, 1 / 9, 2 / 9, 1 / 3, 2 / 3)
"""Budgets that a calibration tries by default; between them it interpolates."""

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, by name.

    Raises:
        ValueError: there are none.
    """
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS) if folder.is_dir() else []
    if not found:
        raise ValueError(f"{folder} is no folder with pictures ({', '.join(ENDINGS)}).")
    return found


@torch.inference_mode()
def calibrate(
    loaded: LoadedModel,
    pictures: Sequence[Image.Image],
    shares: Sequence[float] = SHARES,
    *,
    cut_every: int | None = 2,
    on_step: Callable[[], None] | None = None,
) -> Calibration:
    """Cut pictures by the adaptive schedule and average what it does.

    Args:
        loaded: the model and its processor.
        pictures: some of the kind that the model will see; a dozen are enough for a steady mean.
        shares: budgets to try, as shares of an image's visual tokens.
        cut_every: see :class:`~flowcut.methods.flowcut.FlowCut`.
        on_step: called after every picture and budget.

    Raises:
        ValueError: no picture or budget was given, or no budget cuts anything.
        UnsupportedModelError: the model is not supported.
    """
    if not pictures or not shares:
        raise ValueError(f"A calibration needs pictures and budgets; got {len(pictures)} and {len(shares)}.")
    family, parts = find_parts(loaded.model)
    packed = parts.tower.packing is not None
    feature_layer = len(parts.tower.layers) + 1 if packed else max(family.feature_choice(parts, {}).layers)
    model: Any = loaded.model
    inputs = [
        model_inputs(loaded.processor, picture, "?").to(loaded.device, dtype=loaded.dtype) for picture in pictures
    ]
    found: list[tuple[float, tuple[float, ...]]] = []
    for share in sorted(shares):
        tried: list[float] = []
        ratios: list[list[float]] = []
        with attach(model, FlowCut(retain_ratio=share, cut_every=cut_every)) as handle:
            for one in inputs:
                model(**one, use_cache=False, logits_to_keep=1)
                for tile in tiles_of(handle.trace.images):
                    after, target = patches_after(tile)
                    if target < after[0]:
                        tried.append(target / after[0])
                        ratios.append(ratios_of(after, target, feature_layer, cut_every))
                if on_step is not None:
                    on_step()
        if ratios:
            found.append((sum(tried) / len(tried), averaged(ratios)))
    if not found:
        raise ValueError(f"None of the budgets {list(shares)} cuts anything of these pictures; give smaller ones.")
    return Calibration(feature_layer, cut_every, *zip(*sorted(found), strict=True))


def tiles_of(images: Sequence[ImageTrace]) -> list[TileTrace]:
    """The rows of a pass through the tower without padding: all of an image, or its overview.

    Raises:
        NotAppliedError: no image went through the model.
    """
    if not images:
        raise NotAppliedError("No image went through the model, so there is nothing to calibrate by.")
    return [tile for image in images for tile in (image.tiles if image.layout.complete else image.tiles[:1])]


def patches_after(tile: TileTrace) -> tuple[list[int], int]:
    """Patches (or groups of them) before the first layer and after every one, and those that left the tower."""
    target = len(tile.kept) + tile.spare
    prefix = tile.tokens_after_layer[-1] - target * tile.unit
    return [(tokens - prefix) // tile.unit for tokens in (*tile.tokens_into_layer, tile.tokens_after_layer[-1])], target
