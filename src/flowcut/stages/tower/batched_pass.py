"""One batch of images on its way through a vision tower: what was seen, what was cut, what is left."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from ...algorithm.selection import best_first, compose, counts_mask, with_prefix
from ...errors import FlowCutError, NotAppliedError, UnsupportedModelError
from ...methods.base import Method
from ...methods.policies import VisionPolicy
from ...methods.views import LayerView, Merge, OutputView, Selection, TowerPass
from ...models.base import FeatureChoice, VisionTower
from ...trace import ImageTrace, TileTrace
from .narrowing import Merging, Narrowing, sources_after
from .padding import policy_for
from .shared import check_bias, seeds_of
from .tiles import TilePlan


class BatchedPass:
    """One batch of images on its way through the tower.

    Args:
        tower: the tower.
        choice: what the model reads of it.
        plan: what shall become of every image.
        patches: of every row of the batch; groups of them where they are joined.
        method: what cuts.
        pixels: the batch.
        frames: rows of each video.
        model: its name, or the folder it was loaded from.
        places: where the pictures were scaled down, the patches of the full grid that theirs stand for.
    """

    def __init__(
        self,
        tower: VisionTower,
        choice: FeatureChoice,
        plan: list[TilePlan],
        patches: int,
        method: Method,
        pixels: Tensor,
        frames: tuple[int, ...] = (),
        places: Tensor | None = None,
        model: str = "",
    ) -> None:
        self.tower = tower
        self.choice = choice
        self.plan = plan
        self.patches = patches
        self.device = pixels.device
        self.order = plan[0].layout.order if plan else None
        self.group = 1 if self.order is None else self.order.shape[1]
        self.spreads = bool(plan) and plan[0].layout.spread
        self.places = places
        self.last_layer = max(choice.layers)
        self.targets = tuple(target for image in plan for target in image.targets)
        self.policy: VisionPolicy | None = None
        self.pooled_targets = tuple(target for image in plan for target in image.pooled_targets)
        if self.pooled_targets or any(target < patches for target in self.targets):
            self.policy = policy_for(
                method,
                TowerPass(
                    patches,
                    self.targets,
                    self.last_layer,
                    pixels.device,
                    frames,
                    ranks=bool(self.pooled_targets),
                    model=model,
                    seeds=partial(seeds_of, pixels),
                ),
                None
                if all(image.layout.complete for image in plan)
                else torch.cat([image.eligible(patches) for image in plan]),
            )
        self.counts: tuple[int, ...] = (patches,) * len(self.targets)
        self.alive: Tensor | None = None
        self.valid: Tensor | None = None
        self.mask: Any = None
        self.selections: dict[int, Selection | None] = {}
        self.narrowings: dict[int, Narrowing] = {}
        self.reductions: dict[int, Narrowing | Merging] = {}
        self.sources: Tensor | None = None
        self.cut_behind: list[int] = []
        self.wide_inputs: dict[int, Tensor] = {}
        self.kept_after_layer: dict[int, tuple[Tensor, tuple[int, ...]]] = {}
        self.tokens_after_layer: list[tuple[int, ...]] = []
        self.masks_seen: dict[int, Any] = {}
        self._bias: tuple[Tensor | None, Any] = None, None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any) -> Any:
        """Show a layer's q, k, v to the policy; returns the mask that hides the padding of a ragged batch."""
        if layer in self.masks_seen:
            return self.masks_seen[layer]
        if self.order is not None and self.policy is not None and mask is not None:
            raise UnsupportedModelError(
                "An image is padded inside its tile (pixel_attention_mask has zeros), and patches that are joined in "
                "groups cannot be cut there. Give images that fill their tiles, or a budget that covers everything."
            )
        if self.mask is not None or self.alive is not None:
            if mask is not None:
                raise FlowCutError(
                    "The vision tower was called with an attention mask of its own, which does not fit the tokens "
                    "that are left after a cut. Call it without one."
                )
            mask = self.mask
        if self.policy is not None and layer < self.last_layer:
            mask = self._biased(mask, self.policy.bias(layer), query)
        self.masks_seen[layer] = mask
        if self.policy is not None and layer < self.last_layer:
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                view = LayerView(layer, query, key, value, scaling, self.tower.prefix, self.valid, self.group)
                self.policy.observe(view)
                selection = self.policy.select(layer)
            if selection is not None:
                index = with_prefix(in_groups(selection.index, self.group), self.tower.prefix)
                self.narrowings[layer] = Narrowing.to(index, self._tokens(selection.counts))
            self.selections[layer] = selection
        return mask

    def skip(self, layer: int) -> None:
        """Note that the output of ``layer`` was known, for a policy that does not watch it: all tokens go on."""
        self.masks_seen[layer] = self.mask

    def _biased(self, mask: Any, bias: Tensor | None, query: Tensor) -> Any:
        """The mask with what the policy adds to the logits of every key; layers that are told the same share it."""
        if bias is not None and bias is not self._bias[0]:
            check_bias(self.tower.config._attn_implementation)
            per_token = nn.functional.pad(in_groups_of(bias, self.group).to(query.dtype), (self.tower.prefix, 0))
            if self.valid is not None:
                per_token = per_token.masked_fill(~self.valid, torch.finfo(query.dtype).min)
            self._bias = bias, per_token[:, None, None].expand(-1, 1, query.shape[2], -1)
        return mask if bias is None else self._bias[1]

    def arranged(self, hidden: Tensor) -> Tensor:
        """The first layer's input ``[B, S, width]``, the patches of each group side by side."""
        if self.order is None or self.policy is None:
            return hidden
        index = with_prefix(self.order.reshape(1, -1), self.tower.prefix)[0]
        return hidden[:, index.to(hidden.device)]

    def padded(self, features: Tensor) -> Tensor:
        """The tower's output ``[B, S, width]`` at its uncut length, for models that reshape it to a square."""
        missing = self.tower.prefix + self.patches * self.group - features.shape[1]
        return nn.functional.pad(features, (0, 0, 0, missing))

    def spread(self, features: Tensor) -> Tensor:
        """The tower's output ``[B, S, width]`` with every patch at its uncut place, and zeros where one was cut."""
        assert self.order is not None
        order = self.order.to(features.device)
        alive = torch.arange(self.patches)[None].expand(len(features), -1) if self.alive is None else self.alive
        places = with_prefix(order[alive.to(features.device)].flatten(1), self.tower.prefix)
        kept = Narrowing.to(places, self._tokens(self.counts))
        full = self.tower.prefix + self.patches * self.group
        return kept.widen(features, features.new_zeros(len(features), full, features.shape[-1]))

    def narrowing(self, layer: int) -> Narrowing | None:
        """The tokens that go on after ``layer``, where some do not."""
        return self.narrowings.get(layer)

    def cut(self, layer: int, hidden: Tensor) -> Tensor:
        """The hidden states ``[B, S, width]`` that go on after ``layer``."""
        first = len(self.tokens_after_layer) == layer
        if first and self.policy is not None and self.selections.get(layer) is None:
            self._reduce(layer, hidden)
        for kept in (self.narrowings.get(layer), self.reductions.get(layer)):
            if kept is not None:
                hidden = kept.narrow(hidden)
        if first:
            self._note(layer, hidden)
        return hidden

    def _reduce(self, layer: int, hidden: Tensor) -> None:
        """Let the policy choose or merge, from the output ``[B, S, width]`` of a layer."""
        assert self.policy is not None
        prefix = self.tower.prefix
        units = hidden[:, prefix:].detach().reshape(len(hidden), -1, self.group * hidden.shape[-1])
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            selection = self.policy.reduce(OutputView(layer, units, self.counts))
        if selection is None:
            return
        self.selections[layer] = selection
        if isinstance(selection, Merge):
            self.reductions[layer] = Merging(selection.weights, prefix, self.group)
        else:
            index = with_prefix(in_groups(selection.index, self.group), prefix)
            self.reductions[layer] = Narrowing.to(index, self._tokens(selection.counts))

    def _note(self, layer: int, hidden: Tensor) -> None:
        """Keep the books after a layer; a layer that is recomputed in the backward pass is in them already."""
        if self.policy is not None and layer not in self.masks_seen:
            raise NotAppliedError(
                f"Vision layer {layer} ran without its attention being seen: its forward was replaced, or its "
                "attention no longer goes through transformers' attention interface. Attach after such changes."
            )
        selection = self.selections.get(layer)
        if selection is not None:
            self.counts = selection.counts
            index = selection.index
            self.sources = sources_after(self.sources, selection)
            if layer in self.reductions:
                self.cut_behind.append(layer)
            self.alive = index if self.alive is None else compose(self.alive.to(index.device), index)
            self.kept_after_layer[layer] = (self.alive, self.counts)
            self._update_mask(hidden, index)
        self.tokens_after_layer.append(tuple(self._tokens(self.counts)))

    def _tokens(self, counts: tuple[int, ...]) -> list[int]:
        """Tokens of the tower that make up so many patches (or groups), prefix tokens included."""
        return [self.tower.prefix + count * self.group for count in counts]

    def _update_mask(self, hidden: Tensor, index: Tensor) -> None:
        width = index.shape[1]
        if min(self.counts) == width:
            self.valid, self.mask = None, None
            return
        self.valid = counts_mask(self._tokens(self.counts), hidden.shape[1], hidden.device)
        self.mask = create_bidirectional_mask(
            config=self.tower.config,
            inputs_embeds=hidden,
            attention_mask=self.valid.long(),
        )

    def aligned(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden state number ``layer`` (0 is the embedding output) reduced to the tokens kept at the end."""
        for cut_layer, kept in sorted({**self.narrowings, **self.reductions}.items(), key=itemgetter(0)):
            if cut_layer >= layer:
                hidden = kept.narrow(hidden)
        return hidden

    def traces(self, keep_separators: bool) -> list[ImageTrace]:
        """What happened to every image.

        Args:
            keep_separators: whether separators of rows that still have a patch stay.

        Raises:
            NotAppliedError: layers were skipped, or an image still has more tokens than its budget.
        """
        counts, targets = self._per_image(self.counts), self._per_image(self.targets)
        if len(self.tokens_after_layer) < self.last_layer or counts != targets:
            raise NotAppliedError(
                f"The vision tower ended with {counts} patches per image instead of {targets}: "
                f"{len(self.tokens_after_layer)} of {self.last_layer} layers passed through the method. Its forward "
                "was replaced or wrapped after attaching; detach, make the change, then attach."
            )
        tiles = [self._tile(row) for row in range(len(self.targets))]
        pooled = self._choose_pooled()
        traces = []
        for image in self.plan:
            own = tuple(tiles.pop(0) for _ in range(image.layout.tiles))
            traces.append(image.trace(own, keep_separators, tuple(islice(pooled, len(image.pooled_targets)))))
        return traces

    def _choose_pooled(self) -> Iterator[Tensor]:
        """The pooled tokens that stay, of every row where the tower stays whole, or of every image."""
        if not self.pooled_targets or self.policy is None:
            return
        weights = self.plan[0].layout.pooled
        if weights is not None:
            chosen = self.policy.choose_pooled(weights.to(self.device), self.pooled_targets)
            yield from (row[:count] for row, count in zip(chosen.index, chosen.counts, strict=True))
            return
        importance = torch.split(self.policy.rank(), [image.layout.tiles for image in self.plan])
        for image, own in zip(self.plan, importance, strict=True):
            if image.pooled_targets and image.layout.blend is not None:
                patches, shares = (part.to(own.device) for part in image.layout.blend)
                scores = (own.flatten()[patches] * shares).sum(dim=1)
                scores = scores.masked_fill(image.layout.tokens.to(own.device) < 0, float("-inf"))
                yield best_first(scores, image.target).sort().values

    def _per_image(self, rows: tuple[int, ...]) -> list[int]:
        """Numbers of every row, summed over the rows of each image."""
        numbers = iter(rows)
        return [sum(islice(numbers, image.layout.tiles)) for image in self.plan]

    def _tile(self, row: int) -> TileTrace:
        unrun = len(self.tower.layers) - len(self.tokens_after_layer)
        counts = [*self.tokens_after_layer, *[self.tokens_after_layer[-1]] * unrun]
        kept = torch.arange(self.patches) if self.alive is None else self.alive[row, : self.counts[row]]
        handed_on = None if self.policy is None else self.policy.handed_on()
        patches = self.patches
        if self.places is not None:
            kept, patches = self.places, len(self.plan[row].layout.tokens) - self.choice.visible_prefix
        return TileTrace(
            kept=kept,
            patches=patches,
            entered=self.patches,
            tokens_after_layer=[after[row] for after in counts],
            layers_run=self.last_layer,
            kept_after_layer={
                layer: alive[row, : counted[row]] for layer, (alive, counted) in self.kept_after_layer.items()
            },
            unit=self.group,
            cut_behind=tuple(self.cut_behind),
            merged=None if self.sources is None else self.sources[row, : self.counts[row]],
            handed_on=None if handed_on is None else handed_on[row, : self.counts[row]],
        )


def in_groups(index: Tensor, group: int) -> Tensor:
    """Positions of groups ``[B, K]`` as positions of their tokens ``[B, K * group]``."""
    if group == 1:
        return index
    return (index[..., None] * group + torch.arange(group, device=index.device)).flatten(1)


def in_groups_of(values: Tensor, group: int) -> Tensor:
    """A value of every group ``[B, N]`` as values of its tokens ``[B, N * group]``."""
    return values if group == 1 else values.repeat_interleave(group, dim=1)
