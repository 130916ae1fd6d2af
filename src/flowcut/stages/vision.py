"""The cut inside the vision tower: watch every layer's attention, drop patches after some of them.

The state of a pass travels with the data, as a keyword argument through the tower's layers. So passes in
several threads never meet, an exception leaves nothing behind, and a layer that gradient checkpointing runs
again in the backward pass repeats its cut instead of deciding anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from ..errors import FlowCutError, NotAppliedError
from ..methods.base import LayerView, Method, Selection, TowerPass, VisionPolicy
from ..models.base import FeatureChoice, ModelFamily, ModelParts, VisionTower
from ..selection import compose, counts_mask, with_prefix
from ..trace import ImageTrace, TileTrace
from .attention import PASS_KEYWORD, Observation, current_pass
from .narrowing import Narrowing
from .overrides import Override
from .tiles import TilePlan, pack_tiles, plan_image

TRACES = "flowcut_images"
"""Attribute of a tower's output that holds the traces of its images."""

call_options: ContextVar[dict[str, Any]] = ContextVar("flowcut_call_options", default={})  # noqa: B039
"""Arguments of the ``get_image_features`` call at work; read only."""


latest_traces: ContextVar[list[ImageTrace]] = ContextVar("flowcut_latest_traces", default=[])  # noqa: B039
"""Traces of the tower's pass in the ``get_image_features`` call at work, for the packing behind it; read only."""


class VisionPass:
    """One batch of images on its way through the tower."""

    def __init__(
        self,
        tower: VisionTower,
        choice: FeatureChoice,
        plan: list[TilePlan],
        patches: int,
        method: Method,
        device: torch.device,
    ) -> None:
        self.tower = tower
        self.choice = choice
        self.plan = plan
        self.patches = patches
        self.last_layer = max(choice.layers)
        self.targets = tuple(target for image in plan for target in image.targets)
        self.policy: VisionPolicy | None = None
        if any(target < patches for target in self.targets):
            self.policy = method.vision_policy(TowerPass(patches, self.targets, self.last_layer, device))
        self.counts: tuple[int, ...] = (patches,) * len(self.targets)
        self.alive: Tensor | None = None
        self.valid: Tensor | None = None
        self.mask: Any = None
        self.selections: dict[int, Selection | None] = {}
        self.narrowings: dict[int, Narrowing] = {}
        self.tokens_into: dict[int, int] = {}
        self.kept_after_layer: dict[int, tuple[Tensor, tuple[int, ...]]] = {}
        self.tokens_after_layer: list[tuple[int, ...]] = []
        self.masks_seen: dict[int, Any] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any) -> Any:
        """Show a layer's q, k, v to the policy; returns the mask that hides the padding of a ragged batch."""
        if layer in self.masks_seen:
            return self.masks_seen[layer]
        if self.mask is not None or self.alive is not None:
            if mask is not None:
                raise FlowCutError(
                    "The vision tower was called with an attention mask of its own, which does not fit the tokens "
                    "that are left after a cut. Call it without one."
                )
            mask = self.mask
        self.masks_seen[layer] = mask
        if self.policy is not None and layer < self.last_layer:
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                view = LayerView(layer, query, key, value, scaling, self.tower.prefix, self.valid)
                self.policy.observe(view)
                selection = self.policy.select(layer)
            if selection is not None:
                counts = [self.tower.prefix + count for count in selection.counts]
                self.narrowings[layer] = Narrowing.to(with_prefix(selection.index, self.tower.prefix), counts)
            self.selections[layer] = selection
        return mask

    def narrowing(self, layer: int) -> Narrowing | None:
        """The tokens that go on after ``layer``, where some do not."""
        return self.narrowings.get(layer)

    def cut(self, layer: int, hidden: Tensor) -> Tensor:
        """The hidden states ``[B, S, width]`` that go on after ``layer``."""
        narrowing = self.narrowings.get(layer)
        if narrowing is not None:
            hidden = narrowing.narrow(hidden)
        if len(self.tokens_after_layer) == layer:
            self._note(layer, hidden)
        return hidden

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
            self.alive = index if self.alive is None else compose(self.alive.to(index.device), index)
            self.kept_after_layer[layer] = (self.alive, self.counts)
            self._update_mask(hidden, index)
        self.tokens_after_layer.append(tuple(self.tower.prefix + count for count in self.counts))

    def _update_mask(self, hidden: Tensor, index: Tensor) -> None:
        width = index.shape[1]
        if min(self.counts) == width:
            self.valid, self.mask = None, None
            return
        prefix = self.tower.prefix
        self.valid = counts_mask([prefix + count for count in self.counts], prefix + width, hidden.device)
        self.mask = create_bidirectional_mask(
            config=self.tower.config,
            inputs_embeds=hidden,
            attention_mask=self.valid.long(),
        )

    def aligned(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden state number ``layer`` (0 is the embedding output) reduced to the tokens kept at the end."""
        for cut_layer, narrowing in sorted(self.narrowings.items(), key=itemgetter(0)):
            if cut_layer >= layer:
                hidden = narrowing.narrow(hidden)
        return hidden

    def traces(self, keep_separators: bool) -> list[ImageTrace]:
        """What happened to every image.

        Args:
            keep_separators: whether separators of rows that still have a patch stay.

        Raises:
            NotAppliedError: layers were skipped, or an image still has more tokens than its budget.
        """
        if len(self.tokens_after_layer) < self.last_layer or self.counts != self.targets:
            raise NotAppliedError(
                f"The vision tower ended with {self.counts} patches per image instead of {self.targets}: "
                f"{len(self.tokens_after_layer)} of {self.last_layer} layers passed through the method. Its forward "
                "was replaced or wrapped after attaching; detach, make the change, then attach."
            )
        tiles = [self._tile(row) for row in range(len(self.targets))]
        traces = []
        for image in self.plan:
            own = tuple(tiles.pop(0) for _ in range(image.layout.tiles))
            traces.append(image.trace(own, keep_separators))
        return traces

    def _tile(self, row: int) -> TileTrace:
        unrun = len(self.tower.layers) - len(self.tokens_after_layer)
        counts = [*self.tokens_after_layer, *[self.tokens_after_layer[-1]] * unrun]
        kept = torch.arange(self.patches) if self.alive is None else self.alive[row, : self.counts[row]]
        return TileTrace(
            kept=kept,
            patches=self.patches,
            tokens_after_layer=[after[row] for after in counts],
            layers_run=self.last_layer,
            kept_after_layer={
                layer: alive[row, : counted[row]] for layer, (alive, counted) in self.kept_after_layer.items()
            },
        )


class VisionStage:
    """Keeps a method attached to a vision tower until :meth:`close`."""

    def __init__(self, family: ModelFamily, parts: ModelParts, method: Method) -> None:
        self.family = family
        self.parts = parts
        self.method = method
        tower = parts.tower
        self.observation = Observation(tower.attentions)
        self.handles = [
            tower.module.register_forward_pre_hook(self._enter, with_kwargs=True),
            tower.module.register_forward_hook(self._leave, with_kwargs=True),
        ]
        for index, layer in enumerate(tower.layers):
            # In front of transformers' own recorders of hidden states, which would otherwise keep the uncut ones.
            self.handles.append(
                layer.register_forward_hook(partial(self._after_layer, index), prepend=True, with_kwargs=True)
            )
        for modules in (tower.projections, tower.mlps):
            for index, module in enumerate(modules):
                self.handles.append(module.register_forward_pre_hook(partial(narrow_input, index)))
                self.handles.append(module.register_forward_hook(partial(widen_output, index)))
        self.overrides = [
            Override(layer, "forward", partial(run_or_skip, index)) for index, layer in enumerate(tower.layers)
        ]
        self.overrides.append(Override(parts.base, "get_image_features", with_call_options))
        if parts.packer is not None:
            self.overrides.append(Override(parts.base, parts.packer, pack_kept))

    def close(self) -> None:
        """Take every hook and override off again."""
        for handle in self.handles:
            handle.remove()
        for override in reversed(self.overrides):
            override.close()
        self.observation.close()

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.observation.refresh()
        pixel_values = args[0] if args else kwargs["pixel_values"]
        options, tower = call_options.get(), self.parts.tower
        choice = self.family.feature_choice(self.parts, options)
        grid = (pixel_values.shape[-2] // tower.patch_size, pixel_values.shape[-1] // tower.patch_size)
        layouts = self.family.layouts(self.parts, choice, len(pixel_values), grid, options)
        patches = grid[0] * grid[1]
        plan = [plan_image(self.method, layout, patches, choice, self.parts.second_cut) for layout in layouts]
        current = VisionPass(tower, choice, plan, patches, self.method, pixel_values.device)
        return args, {**kwargs, PASS_KEYWORD: current}

    def _after_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        current: VisionPass | None = kwargs.get(PASS_KEYWORD)
        current_pass.set(None)
        if current is None or index >= current.last_layer:
            return None
        return current.cut(index, output)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        current: VisionPass = kwargs[PASS_KEYWORD]
        traces = current.traces(self.method.image_newline)
        states = output.hidden_states
        if states is not None:
            output.hidden_states = tuple(
                current.aligned(layer, state) if state is not None and layer in current.choice.layers else state
                for layer, state in enumerate(states)
            )
        setattr(output, TRACES, traces)
        latest_traces.set(traces)
        return output


def narrow_input(index: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Pre-hook of a vision layer's projection and MLP: tokens that are cut after the layer need not pass through."""
    current = current_pass.get()
    narrowing = current.narrowing(index) if isinstance(current, VisionPass) else None
    if narrowing is None or not isinstance(current, VisionPass):
        return None
    current.tokens_into[index] = args[0].shape[1]
    return (narrowing.narrow(args[0]), *args[1:])


def widen_output(index: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Hook of the same modules: gives their output the length that the layer expects."""
    current = current_pass.get()
    narrowing = current.narrowing(index) if isinstance(current, VisionPass) else None
    if narrowing is None or not isinstance(current, VisionPass):
        return None
    return narrowing.widen(output, current.tokens_into[index])


def run_or_skip(index: int, original: Callable[..., Any], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A vision layer's forward: layers behind the feature layer hand their input on."""
    current: VisionPass | None = kwargs.get(PASS_KEYWORD)
    if current is not None and index >= current.last_layer:
        return hidden_states
    return original(hidden_states, *args, **kwargs)


def with_call_options(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``get_image_features`` with its arguments at hand for the tower's hooks."""
    bound = inspect.signature(original).bind(*args, **kwargs)
    token = call_options.set({**bound.arguments, **bound.kwargs})
    try:
        return original(*args, **kwargs)
    finally:
        call_options.reset(token)
        latest_traces.set([])


def pack_kept(original: Callable[..., Any], image_features: Any, image_sizes: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's packing of tiles, for images of which only some patches are left."""
    traces = latest_traces.get()
    if all(tile.patches == len(tile.kept) for trace in traces for tile in trace.tiles):
        return original(image_features, image_sizes, *args, **kwargs)
    bound = inspect.signature(original).bind(image_features, image_sizes, *args, **kwargs)
    newline = bound.arguments.get("image_newline")
    packed = [pack_tiles(trace, features, newline) for trace, features in zip(traces, image_features, strict=True)]
    return packed, torch.tensor([len(features) for features in packed], device=packed[0].device)
