"""One packed sequence of images on its way through a vision tower: what was seen, what was cut, what is left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotAppliedError
from ...methods.base import Method
from ...methods.views import LayerView
from ...models.base import ModelParts
from ...trace import ImageTrace
from .packed_image import PackedImage, Reduction, pairs_of_images
from .rows import Rows
from .shared import check_bias, name_of, seeds_of

SEGMENTS = {"cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k"}
"""Arguments of layers that say where segments begin and end."""

ROTARY = "position_embeddings"
"""The argument of layers that turns queries and keys by their places."""

LONGEST = {"max_seqlen", "max_length_q", "max_length_k"}
"""Arguments of layers that say how long the longest segment is."""


class PackedPass:
    """One packed sequence on its way through the tower.

    Args:
        parts: the model.
        method: what cuts.
        grids: (time, height, width) of every image, in patches.
        order: see :class:`~flowcut.models.base.Packing`.
        pixels: of every image, of any shape.
        rows: where the patches stand, if the tower takes images as rows of a batch.
    """

    def __init__(
        self,
        parts: ModelParts,
        method: Method,
        grids: list[tuple[int, ...]],
        order: Tensor | None,
        pixels: Sequence[Tensor],
        rows: Tensor | None = None,
    ) -> None:
        assert parts.tower.packing is not None
        self.method = method
        self.packing = parts.tower.packing
        self.depth = len(parts.tower.layers)
        self.order = order
        self.images = [PackedImage(method, grid, self.packing, parts.second_cut) for grid in grids]
        self.implementation: str | None = parts.tower.config._attn_implementation
        self.arrangement: Tensor | None = None
        for image, own in zip(self.images, pixels, strict=True):
            image.seeds = partial(seeds_of, own.reshape(1, -1))
            image.model = name_of(parts)
        counts = [image.patches for image in self.images]
        self.rows = None if rows is None else Rows(rows, counts, self.implementation)
        self.cuts = any(image.cut for image in self.images)
        self.alive: dict[int, Tensor] = {}
        self.chunks: dict[int, list[tuple[Tensor, ...]]] = {}
        self.kept: dict[int, Tensor | None] = {}
        self.reductions: dict[int, list[Reduction]] = {}
        self.biases: dict[int, Tensor | None] = {}
        self._again: dict[int, int] = {}
        self.length_into: dict[int, int] = {}
        self.bounds: dict[int, tuple[Tensor, Tensor]] = {}
        self._alive_now: Tensor | None = None
        self._rotary: tuple[Tensor, Any] | None = None
        self._waiting: list[tuple[nn.Module, Tensor, Tensor | None]] = []

    def arguments(self, layer: int, given: dict[str, Any], hidden: Tensor) -> dict[str, Any]:
        """What ``layer`` must be called with beside ``hidden``, instead of ``given``, which fits the uncut sequence."""
        if layer not in self.kept and self._alive_now is not None:
            self.alive[layer] = self._alive_now
        alive = self.alive.get(layer)
        whole = self._whole_bounds(given, hidden.device)
        changed: dict[str, Any] = {}
        if alive is None:
            self.bounds[layer] = (whole, whole)
            if self.rows is not None and self.cuts:
                return self.rows.arguments(self._numbers(hidden.device), given, hidden)
            if self.arrangement is not None and self.cuts:
                changed.update(self._rotary_of(self.arrangement, given))
            return changed
        bounds = torch.searchsorted(alive, whole.to(alive)).to(whole)
        bounds = bounds[bounds.diff(prepend=bounds.new_full((1,), -1)) > 0]
        self.bounds[layer] = (bounds, whole)
        if self.rows is not None:
            return self.rows.arguments(self._numbers(alive.device)[alive], given, hidden)
        places = alive if self.arrangement is None else self.arrangement.to(alive.device)[alive]
        changed.update(self._rotary_of(places, given))
        for name in SEGMENTS & given.keys():
            changed[name] = bounds
        for name in LONGEST & given.keys():
            changed[name] = None if given[name] is None else int(bounds.diff().max())
        if isinstance(given.get("attention_mask"), Tensor):
            mask: Tensor = given["attention_mask"]
            changed["attention_mask"] = mask.index_select(-2, alive).index_select(-1, alive)
        return changed

    def _numbers(self, device: torch.device) -> Tensor:
        """The patch at every place of the uncut sequence."""
        if self.arrangement is not None:
            return self.arrangement.to(device)
        return torch.arange(sum(image.patches for image in self.images), device=device)

    def _whole_bounds(self, given: dict[str, Any], device: torch.device) -> Tensor:
        """Where segments begin and end in the uncut sequence."""
        for name in SEGMENTS:
            if name in given:
                bounds: Tensor = given[name]
                return bounds
        lengths = [0, *(image.patches for image in self.images)]
        return torch.tensor(lengths, device=device).cumsum(0)

    def _rotary_of(self, places: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        """The rotary embeddings at some places of the uncut sequence, where layers take any."""
        if ROTARY not in given:
            return {}
        if self._rotary is None or self._rotary[0] is not places:
            self._rotary = (places, tuple(part[places.to(part.device)] for part in given[ROTARY]))
        return {ROTARY: self._rotary[1]}

    def arranged(self, hidden: Tensor) -> Tensor:
        """The first layer's input ``[..., S, width]``, the patches of each group side by side."""
        if self.rows is not None and self.cuts:
            return self.rows.joined(hidden, self.arrangement)
        if self.arrangement is None or not self.cuts:
            return hidden
        return hidden.index_select(-2, self.arrangement.to(hidden.device))

    def restored(self, hidden: Tensor) -> Tensor:
        """The last layer's output ``[..., S, width]`` with every patch at its uncut place, zeros where one was cut."""
        if not self.cuts:
            return hidden
        places = self._alive_now
        if self.arrangement is not None:
            arrangement = self.arrangement.to(hidden.device)
            places = arrangement if places is None else arrangement[places.to(hidden.device)]
        if places is None and self.rows is None:
            return hidden
        if places is None:
            places = self._numbers(hidden.device)
        length = sum(image.patches for image in self.images)
        whole = hidden.new_zeros(*hidden.shape[:-2], length, hidden.shape[-1])
        whole = whole.index_copy(-2, places.to(hidden.device), hidden)
        return whole if self.rows is None else self.rows.parted(whole)

    def narrowing(self, layer: int) -> None:
        """Every token's attention is computed: q, k, v come segment by segment, complete only with the last one."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any) -> Any:
        """Collect a layer's q, k, v, which may come segment by segment; complete, they go to the policies."""
        if not self.cuts:
            return mask
        if layer in self.kept:
            # A layer that is recomputed in the backward pass: its segments come in the same order again.
            start = self._again.get(layer, 0)
            self._again[layer] = (start + query.shape[2]) % self.length_into[layer]
            return self._biased(layer, start, query, mask)
        chunks = self.chunks.setdefault(layer, [])
        if not chunks:
            self.biases[layer] = self._bias(layer, query)
        mask = self._biased(layer, sum(chunk[0].shape[2] for chunk in chunks), query, mask)
        chunks.append((query.detach(), key.detach(), value.detach()))
        if sum(chunk[0].shape[2] for chunk in chunks) == sum(image.count for image in self.images):
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                self._choose(layer, scaling, self.chunks.pop(layer))
        return mask

    def _bias(self, layer: int, query: Tensor) -> Tensor | None:
        """What the policies add to the logits of every key of a layer, ``[S]``."""
        biases = [image.bias(layer) for image in self.images]
        if all(bias is None for bias in biases):
            return None
        check_bias(self.implementation)
        per_image = [
            query.new_zeros(image.count) if bias is None else bias.to(query.dtype).repeat_interleave(image.size)
            for image, bias in zip(self.images, biases, strict=True)
        ]
        return torch.cat(per_image)

    def _biased(self, layer: int, start: int, query: Tensor, mask: Any) -> Any:
        """The mask of a segment whose first token is number ``start``, with its part of the bias."""
        bias = self.biases.get(layer)
        if bias is None:
            return mask
        own = bias[start : start + query.shape[2]].expand(1, 1, query.shape[2], -1)
        return own if mask is None else mask + own

    def _choose(self, layer: int, scaling: float, chunks: list[tuple[Tensor, ...]]) -> None:
        counts = [image.count for image in self.images]
        states = [parts[0] if len(parts) == 1 else torch.cat(parts, dim=2) for parts in zip(*chunks, strict=True)]
        of_images = zip(*(state.split(counts, dim=2) for state in states), strict=True)
        kept, start, changed = [], 0, False
        for image, count, (query, key, value) in zip(self.images, counts, of_images, strict=True):
            chosen = None
            if image.cut:
                view = LayerView(layer, query, key, value, scaling, 0, None, image.size)
                chosen = image.choose(view, self.depth, self.method)
            changed = changed or chosen is not None
            kept.append(start + (torch.arange(count, device=query.device) if chosen is None else chosen))
            start += count
        self.length_into[layer] = start
        self.kept[layer] = torch.cat(kept) if changed else None

    def narrow(self, layer: int, hidden: Tensor) -> Tensor:
        """The tokens that go on after ``layer``, of ``hidden`` ``[..., S, width]``."""
        kept = self.kept.get(layer)
        return hidden if kept is None else hidden.index_select(-2, kept.to(hidden.device))

    def cut(self, layer: int, hidden: Tensor) -> Tensor:
        """:meth:`narrow`, with the books kept; a layer recomputed in the backward pass is in them already.

        Raises:
            NotAppliedError: the layer's attention was not seen.
        """
        if self.cuts and layer not in self.kept:
            raise NotAppliedError(
                f"Vision layer {layer} ran without its attention being seen: its forward was replaced, or its "
                "attention no longer goes through transformers' attention interface. Attach after such changes."
            )
        if len(self.images[0].counts_after) == layer:
            kept = self.kept.get(layer)
            if kept is None and self.cuts:
                kept = self._reduce(layer, hidden.reshape(-1, hidden.shape[-1]))
            for image in self.images:
                image.counts_after.append(image.count)
            if kept is not None:
                self._alive_now = kept if self._alive_now is None else self._alive_now[kept]
        reductions = self.reductions.get(layer)
        if reductions is None:
            hidden = self.narrow(layer, hidden)
        else:
            rows = torch.split(hidden.reshape(-1, hidden.shape[-1]), [reduction.count for reduction in reductions])
            narrowed = torch.cat([one.narrow(block) for one, block in zip(reductions, rows, strict=True)])
            hidden = narrowed.reshape(*hidden.shape[:-2], *narrowed.shape)
        return self.restored(hidden) if self.packing.restores and layer == self.depth - 1 else hidden

    def _reduce(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Let the policies choose or merge, from a layer's output ``[S, width]``; the tokens that go on."""
        before = [image.count for image in self.images]
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            reductions = [
                image.reduce(layer, states)
                for image, states in zip(self.images, torch.split(hidden.detach(), before), strict=True)
            ]
        if [image.count for image in self.images] == before:
            return None
        self.reductions[layer] = reductions
        starts = torch.tensor([0, *before]).cumsum(0).tolist()
        return torch.cat([one.kept + start for one, start in zip(reductions, starts, strict=False)])

    def spread(self, merged: Tensor) -> Tensor:
        """The merger's tokens ``[kept, width]`` at the places of the uncut groups, ``[groups, width]``."""
        if not self.cuts:
            return merged
        starts = torch.tensor([0, *(image.groups for image in self.images)]).cumsum(0).tolist()
        places = [image.places().to(merged.device) + start for image, start in zip(self.images, starts, strict=False)]
        return merged.new_zeros(starts[-1], merged.shape[1]).index_copy(0, torch.cat(places), merged)

    def postpone(self, merger: nn.Module, hidden: Tensor) -> None:
        """Keep states ``[S, width]`` from the middle of the tower until it is known which tokens stay."""
        self._waiting.append((merger, hidden, self._alive_now))

    def merge_postponed(self) -> list[Tensor]:
        """The features of :meth:`postpone`, in the form of :meth:`spread`."""
        features = []
        for merger, hidden, alive in self._waiting:
            kept = self._alive_now
            assert kept is not None
            places = kept if alive is None else torch.searchsorted(alive, kept)
            features.append(self.spread(merger(hidden[places.to(hidden.device)])))
        self._waiting.clear()
        return features

    def traces(self) -> list[ImageTrace]:
        """What happened to every image.

        Raises:
            NotAppliedError: layers were skipped, or an image still has more tokens than its budget.
        """
        ended = [(len(image.alive), image.target if image.cut else image.units) for image in self.images]
        if any(count != target for count, target in ended) or len(self.images[0].counts_after) != self.depth:
            raise NotAppliedError(
                f"The vision tower ended with {[count for count, _ in ended]} units per image instead of "
                f"{[target for _, target in ended]}. Its forward was replaced or wrapped after attaching; detach, "
                "make the change, then attach."
            )
        traces, start = [], 0
        self._count_pairs()
        for image in self.images:
            own = None if self.order is None else self.order[start : start + image.groups] - start
            traces.append(image.trace(own))
            start += image.groups
        return traces

    def _count_pairs(self) -> None:
        """How many (query, key) pairs every layer's attention forms within every image, cut and uncut."""
        uncut = [image.patches for image in self.images]
        entering = uncut
        pairs = []
        for layer in range(self.depth):
            bounds, whole = self.bounds[layer]
            pairs.append(torch.stack([pairs_of_images(bounds, entering), pairs_of_images(whole, uncut)]))
            entering = [image.counts_after[layer] for image in self.images]
        for image, (cut, whole_pairs) in zip(self.images, torch.stack(pairs).permute(2, 1, 0).tolist(), strict=True):
            image.pairs, image.uncut_pairs = cut, whole_pairs
