"""From the patches of a tower's rows to the visual tokens of an image, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ...methods.base import Method
from ...models.base import PREFIX, SEPARATOR, FeatureChoice, ImageLayout
from ...trace import ImageTrace, TileTrace


@dataclass(frozen=True)
class TilePlan:
    """What shall become of one image.

    Attributes:
        layout: how it becomes visual tokens.
        targets: patches of each tile that leave the tower, at least 1.
        pooled_targets: where patches are pooled behind a tower that stays whole, pooled tokens of each tile that stay;
            one number for all tiles where tokens are interpolated across them.
        target: visual tokens that stay in the end.
        room: where the budget is shared out among the patches outside the padding of the tiles: how many of them each
            tile has, else empty.
        spare: tiles whose one patch is left out behind the tower, which cannot run on none.
    """

    layout: ImageLayout
    targets: tuple[int, ...]
    target: int
    pooled_targets: tuple[int, ...] = ()
    room: tuple[int, ...] = ()
    spare: tuple[int, ...] = ()

    def eligible(self, patches: int) -> Tensor:
        """Boolean ``[tiles, patches]``: the patches that may be chosen, of so many of each tile."""
        if not self.room or min(self.room) == patches:
            return torch.ones(self.layout.tiles, patches, dtype=torch.bool)
        return outside_padding(self.layout, patches)

    def trace(self, tiles: tuple[TileTrace, ...], keep_separators: bool, pooled: tuple[Tensor, ...] = ()) -> ImageTrace:
        """The image's trace, from what happened to its tiles; ``pooled`` are the pooled tokens of each that stay."""
        if self.layout.plain:
            kept, count = kept_of_plain(self.layout, tiles[0])
            return ImageTrace(tiles, self.layout, kept, count, self.target)
        tokens = self.layout.tokens.to(pooled[0].device if pooled else tiles[0].kept.device)
        if pooled and self.layout.blend is not None:
            kept = torch.zeros_like(tokens, dtype=torch.bool)
            kept[pooled[0]] = True
            if keep_separators:
                kept |= keep_separators_of(tokens, kept, tiles)
            chosen = tokens[pooled[0]].sort().values
            return ImageTrace(tiles, self.layout, kept, int(kept.sum()), self.target, chosen)
        if pooled and self.layout.pooled is not None:
            kept = (tokens == SEPARATOR) & keep_separators
            per_tile = len(self.layout.pooled)
            kept[torch.cat([chosen + number * per_tile for number, chosen in enumerate(pooled)])] = True
            return ImageTrace(tiles, self.layout, kept, int(kept.sum()), self.target)
        for number in self.spare:
            tile = tiles[number]
            merged = None if tile.merged is None else tile.merged[:0]
            without = replace(tile, kept=tile.kept[:0], spare=1, merged=merged)
            tiles = (*tiles[:number], without, *tiles[number + 1 :])
        if not self.room and all(len(tile.kept) == tile.patches for tile in tiles):
            kept, count = torch.ones_like(tokens, dtype=torch.bool), len(tokens)
        else:
            kept = kept_tokens(tokens, tiles, keep_separators)
            cut = sum(tile.patches - len(tile.kept) for tile in tiles)
            count = len(tokens) - cut if self.layout.complete else int(kept.sum())
        return ImageTrace(tiles, self.layout, kept, count, self.target)


def eligible_of(plan: list[TilePlan], patches: int) -> Tensor | None:
    """Which patches of a batch's rows may be chosen, boolean ``[B, patches]``; ``None`` where all may."""
    if all(image.layout.complete for image in plan):
        return None
    return torch.cat([image.eligible(patches) for image in plan])


def plan_image(method: Method, layout: ImageLayout, patches: int, choice: FeatureChoice, second_cut: bool) -> TilePlan:
    """How many patches of each tile of an image leave the tower.

    Raises:
        UnsupportedModelError: there is something to cut, but the layout does not allow it.
        ValueError: the budget does not even cover the prefix tokens and one patch (of every frame).
    """
    available = len(layout.tokens)
    tokens = method.tokens_to_keep(available)
    if tokens == available or not method.cuts_tower:
        return TilePlan(layout, (patches,) * layout.tiles, tokens)
    if layout.pooled is not None and method.ranks_pooled:
        budget = budget_of_patches(method, available, 0, layout.tiles)
        shares = method.tile_targets(budget, layout.tiles, len(layout.pooled), second_cut)
        return TilePlan(layout, (patches,) * layout.tiles, tokens, shares)
    if layout.blend is not None and method.ranks_pooled:
        tokens = min(tokens, int((layout.tokens >= 0).sum()))
        return TilePlan(layout, (patches,) * layout.tiles, tokens, (tokens,))
    if layout.blocked:
        raise UnsupportedModelError(layout.blocked)
    rows = layout.tiles if layout.complete else 1
    budget = budget_of_patches(method, available, rows * choice.visible_prefix, rows)
    shares = method.tile_targets(budget, layout.tiles, patches, second_cut)
    if layout.complete or method.counts_padding():
        return TilePlan(layout, shares, tokens)
    room = outside_padding(layout, patches).sum(dim=1).tolist()
    # A method that cuts again behind the tower lets more through; but never less than its budget.
    again = method.cuts_projected or method.decoder_layers(second_cut)
    total = max(budget, sum(shares)) if again else budget
    targets = shared_out(total, shares, room)
    spare = tuple(number for number, target in enumerate(targets) if not target)
    return TilePlan(layout, tuple(max(1, target) for target in targets), tokens, room=tuple(room), spare=spare)


def outside_padding(layout: ImageLayout, patches: int) -> Tensor:
    """Boolean ``[tiles, patches]``: the patches that a visual token stands for, of so many of each tile."""
    eligible = torch.zeros(layout.tiles * patches, dtype=torch.bool)
    eligible[layout.tokens[layout.tokens >= 0].cpu()] = True
    return eligible.reshape(layout.tiles, patches)


def shared_out(total: int, shares: Sequence[int], room: Sequence[int]) -> list[int]:
    """Patches of every tile, ``total`` together or all that have room; what one has no room for goes to the others.

    Args:
        total: how many are wanted.
        shares: how many of each tile, if all had room; where they are more than ``total``, the first tiles come first.
        room: how many each tile has.
    """
    targets = [min(share, most) for share, most in zip(shares, room, strict=True)]
    while sum(targets) > total:
        targets[max(number for number, target in enumerate(targets) if target == max(targets))] -= 1
    while sum(targets) < min(total, sum(room)):
        open_tiles = [number for number, most in enumerate(room) if targets[number] < most]
        each, rest = divmod(min(total, sum(room)) - sum(targets), len(open_tiles))
        for place, number in enumerate(open_tiles):
            targets[number] = min(room[number], targets[number] + each + (place < rest))
    return targets


def budget_of_patches(method: Method, available: int, prefix: int, least: int = 1) -> int:
    """What a budget for ``available`` visual tokens leaves for patches once the prefix tokens are taken off.

    Args:
        method: names the budget.
        available: visual tokens of the uncut image, or video.
        prefix: how many of them are prefix tokens of the tower.
        least: patches that must stay: one of every frame.

    Raises:
        ValueError: it leaves fewer than ``least``.
    """
    tokens = method.tokens_to_keep(available)
    if tokens < prefix + least:
        raise ValueError(
            f"A budget of {tokens} visual token(s) leaves no patch{' for some frames' if least > 1 else ''}: the model "
            f"also reads {prefix} prefix token(s) of the tower (its CLS token: of images under "
            "vision_feature_select_strategy='full', in Video-LLaVA of every frame of a video). "
            f"Give at least {prefix + least}."
        )
    return tokens - prefix


def kept_of_plain(layout: ImageLayout, tile: TileTrace) -> tuple[Tensor, int]:
    """Which visual tokens of a plain layout stay, boolean ``[tokens]``, and how many; nothing is copied or awaited."""
    tokens, left = len(layout.tokens), len(tile.kept)
    if left == tile.patches:
        return torch.ones(tokens, dtype=torch.bool, device=tile.kept.device), tokens
    alive = torch.zeros(tile.patches, dtype=torch.bool, device=tile.kept.device).index_fill_(0, tile.kept, True)
    prefix = tokens - tile.patches
    return (nn.functional.pad(alive, (prefix, 0), value=True) if prefix else alive), prefix + left


def kept_tokens(tokens: Tensor, tiles: tuple[TileTrace, ...], keep_separators: bool) -> Tensor:
    """Which visual tokens of a layout stay: boolean, of the shape of ``tokens``.

    Args:
        tokens: see :class:`~flowcut.models.base.ImageLayout`.
        tiles: what is left of every tile.
        keep_separators: whether a separator stays if a patch between it and the one before does.
    """
    patches = tiles[0].patches
    alive = torch.zeros(len(tiles) * patches, dtype=torch.bool, device=tokens.device)
    for number, tile in enumerate(tiles):
        alive[tile.kept + number * patches] = True
    kept = alive[tokens.clamp(min=0)] & (tokens >= 0)
    if keep_separators:
        kept |= keep_separators_of(tokens, kept, tiles)
    return kept | (tokens == PREFIX)


def keep_separators_of(tokens: Tensor, kept: Tensor, tiles: tuple[TileTrace, ...]) -> Tensor:
    """The separators with a kept patch between them and the one before: boolean, of the shape of ``tokens``."""
    # The overview tile of several has no separator of its own: it must not count for the first row's.
    in_rows = kept & (tokens >= (tiles[0].patches if len(tiles) > 1 else 0))
    separators = (tokens == SEPARATOR).nonzero()[:, 0]
    seen = in_rows.long().cumsum(0)[separators]
    stay = torch.zeros_like(kept)
    stay[separators] = seen > torch.cat([seen.new_zeros(1), seen[:-1]])
    return stay


def pack_tiles(trace: ImageTrace, features: Tensor, newline: Tensor | None) -> Tensor:
    """The kept visual tokens of an image in the order of the prompt.

    Args:
        trace: what is left of the image.
        features: projected patches ``[tiles, K, width]``; behind a tile's kept patches there may be padding.
        newline: the separator's feature, ``[width]``.

    Returns:
        ``[kept visual tokens, width]``.
    """
    patches, width = trace.tiles[0].patches, features.shape[1]
    place = torch.zeros(trace.patches, dtype=torch.long, device=features.device)
    for number, tile in enumerate(trace.tiles):
        place[tile.kept + number * patches] = torch.arange(len(tile.kept), device=place.device) + number * width
    tokens = trace.layout.tokens.to(features.device)[trace.placeholder_kept]
    packed = features.flatten(0, 1)[place[tokens.clamp(min=0)]]
    if newline is not None:
        packed = torch.where((tokens == SEPARATOR)[:, None], newline.to(packed), packed)
    return packed


def join_rows(traces: list[ImageTrace], features: Tensor) -> Tensor:
    """The rows of each video one after the other, without the padding behind a frame's kept patches.

    Args:
        traces: what is left of every video; all videos of a call have as many tokens left.
        features: projected rows ``[frames, tokens, width]``, the frames of all videos.

    Returns:
        ``[videos, kept visual tokens, width]``.
    """
    lengths = [
        len(tile.kept) + int((trace.layout.tokens == PREFIX).sum()) // len(trace.tiles)
        for trace in traces
        for tile in trace.tiles
    ]
    rows = torch.cat([row[:length] for row, length in zip(features, lengths, strict=True)])
    return rows.reshape(len(traces), -1, features.shape[-1])
