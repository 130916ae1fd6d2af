"""The placeholders of a cut picture, and the places of its tokens: plain lists and tensors, no engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import FlowCutError

CHANNELS = 6
"""Numbers behind a token's features that hold its place in its picture, see :func:`coded`."""


def shortened(ids: Sequence[int], token: int, kept: int) -> list[int]:
    """What stands for a picture in the prompt, with ``kept`` placeholders; separators stay.

    Args:
        ids: what stands for the uncut picture.
        token: its placeholder.
        kept: how many stay. Tiles that stand apart get equal shares.

    Raises:
        FlowCutError: there are not as many, or the tiles cannot share them equally.
    """
    runs = runs_of(ids, token)
    share, rest = divmod(kept, max(1, len(runs)))
    if rest or any(share > stop - start for start, stop in runs):
        raise FlowCutError(
            f"{kept} visual tokens cannot be shared among {len(runs)} part(s) of a picture with "
            f"{[stop - start for start, stop in runs]} placeholders. Choose another budget."
        )
    short: list[int] = []
    last = 0
    for start, stop in runs:
        short += [*ids[last:start], *[token] * share]
        last = stop
    return [*short, *ids[last:]]


def runs_of(ids: Sequence[int], token: int) -> list[tuple[int, int]]:
    """Where ``token`` stands without a gap: first place, and the one behind the last."""
    runs: list[tuple[int, int]] = []
    for place, one in enumerate(ids):
        if one != token:
            continue
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def per_picture(entries: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
    """Tokens ``[K, width]`` of every picture, where the model may count each of its tiles as an image.

    Args:
        entries: what the encoder handed out.
        rows: tiles of every picture.

    Raises:
        FlowCutError: there are neither as many entries as pictures nor as tiles.
    """
    if len(entries) == len(rows):
        return list(entries)
    if len(entries) != sum(rows):
        raise FlowCutError(
            f"The encoder handed out {len(entries)} images, and the engine asked for {len(rows)} with {sum(rows)} "
            "tiles together, so that they cannot be told apart."
        )
    pictures, first = [], 0
    for count in rows:
        pictures.append(torch.cat(list(entries[first : first + count])))
        first += count
    return pictures


def uncut_places(
    ids: Sequence[int], token: int, kept: Sequence[int], uncut: Sequence[int]
) -> tuple[list[int], list[int]]:
    """A cut prompt with all placeholders of its pictures back, and where each of its own tokens stands there.

    Args:
        ids: the cut prompt.
        token: the placeholder.
        kept: how many of them stand for each picture (or each tile that stands apart), in order.
        uncut: how many would stand for it uncut.

    Returns:
        The ids of the uncut prompt, and for every token of the cut one its place in it; a picture's kept tokens have
        the place of its first one, as it is not known yet which they are (see :func:`moved`).

    Raises:
        FlowCutError: the prompt has more or fewer placeholders.
    """
    standing = sum(one == token for one in ids)
    if standing != sum(kept):
        raise FlowCutError(f"The prompt has {standing} placeholders for pictures of {list(kept)} visual tokens.")
    whole: list[int] = []
    places: list[int] = []
    left = zip(kept, uncut, strict=True)
    standing = start = 0
    for one in ids:
        if one != token:
            places.append(len(whole))
            whole.append(one)
            continue
        if not standing:
            standing, count = next(left)
            start = len(whole)
            whole += [token] * count
        places.append(start)
        standing -= 1
    return whole, places


def moved(positions: Tensor, is_visual: Tensor, places: Tensor) -> Tensor:
    """Positions ``[axes, N]`` with every visual token moved from the beginning of its picture to its place in it.

    Args:
        is_visual: boolean ``[n]``, of the first ``n`` of ``N`` columns.
        places: ``[K, axes]``, of the visual tokens in order.
    """
    number = (is_visual.long().cumsum(0) - 1).clamp(min=0)
    shift = places[number] * is_visual[:, None]
    return torch.cat([positions[:, : len(shift)] + shift.T.to(positions), positions[:, len(shift) :]], dim=1)


def in_parts(places: Sequence[Tensor], uncut: Sequence[int], rows: Sequence[int], parts: Sequence[int]) -> list[Tensor]:
    """Places within the run of placeholders that stands for several tiles of a picture.

    Args:
        places: ``[K, axes]`` of every tile, within it.
        uncut: tokens of every uncut tile.
        rows: tiles of every picture.
        parts: runs of placeholders of every picture: one for all its tiles, or one for each.
    """
    shifted: list[Tensor] = []
    for count, runs in zip(rows, parts, strict=True):
        start = 0
        for _ in range(count):
            tile = len(shifted)
            shifted.append(places[tile] + start)
            start += uncut[tile] if runs == 1 else 0
    return shifted


def coded(places: Tensor) -> Tensor:
    """Places ``[K, 3]`` as ``[K, 6]``: 128s and ones, which bfloat16 holds exactly up to 32,767."""
    return torch.cat([places // 128, places % 128], dim=1)


def decoded(numbers: Tensor) -> Tensor:
    """int64 ``[K, 3]`` from :func:`coded`."""
    hundreds, ones = numbers.round().long().chunk(2, dim=1)
    return 128 * hundreds + ones
