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
from typing import Any

import torch
from torch import Tensor, nn

from ..methods.base import Method
from ..models.base import MODALITY, ModelFamily, ModelParts, VisionTower
from ..trace import ImageTrace
from .attention import PASS_KEYWORD, Observation, ObservedPass, current_pass, silent_pass
from .overrides import Override
from .shrinking import shrink
from .tiles import join_rows, pack_tiles, plan_image
from .vision_pass import VisionPass

CHECKPOINT = "_gradient_checkpointing_func"
"""Attribute of transformers' layers that calls them under gradient checkpointing."""

TRACES = "flowcut_images"
"""Attribute of a tower's output that holds the traces of its images."""

call_options: ContextVar[dict[str, Any]] = ContextVar("flowcut_call_options", default={})  # noqa: B039
"""Arguments of the ``get_image_features`` (or ``get_video_features``) call at work; read only."""


latest_traces: ContextVar[list[ImageTrace]] = ContextVar("flowcut_latest_traces", default=[])  # noqa: B039
"""Traces of the tower's pass in the ``get_image_features`` call at work, for the packing behind it; read only."""


class VisionStage:
    """Keeps a method attached to a model's vision towers until :meth:`close`."""

    def __init__(self, family: ModelFamily, parts: ModelParts, method: Method) -> None:
        self.family = family
        self.parts = parts
        self.method = method
        self.handles: list[Any] = []
        self.overrides: list[Override] = []
        self.observations = [self._watch(tower) for tower in parts.towers]
        for modality in parts.placeholders:
            encode = partial(with_call_options, modality)
            self.overrides.append(Override(parts.base, f"get_{modality}_features", encode))
        if parts.packer is not None:
            self.overrides.append(Override(parts.base, parts.packer, pack_kept))
        if parts.shuffle is not None:
            self.overrides.append(Override(*parts.shuffle, join_groups))

    def _watch(self, tower: VisionTower) -> Observation:
        """Lay hooks and overrides on one tower."""
        observation = Observation(tower.attentions)
        enter = partial(self._enter, tower, observation)
        self.handles.append(tower.module.register_forward_pre_hook(enter, with_kwargs=True))
        self.handles.append(tower.module.register_forward_hook(self._leave, with_kwargs=True))
        if not tower.keywords:
            self.overrides.append(Override(tower.module, "forward", run_silently))
        for index, layer in enumerate(tower.layers):
            # In front of transformers' own recorders of hidden states, which would otherwise keep the uncut ones.
            self.handles.append(
                layer.register_forward_hook(partial(self._after_layer, index), prepend=True, with_kwargs=True)
            )
            self.overrides.append(Override(layer, "forward", partial(run_or_skip, index)))
        for modules in (tower.projections, tower.mlps):
            for index, module in enumerate(modules):
                self.handles.append(module.register_forward_pre_hook(partial(narrow_input, index)))
                self.handles.append(module.register_forward_hook(partial(widen_output, index)))
        return observation

    def close(self) -> None:
        """Take every hook and override off again."""
        for handle in self.handles:
            handle.remove()
        for override in reversed(self.overrides):
            override.close()
        for observation in self.observations:
            observation.close()

    def _enter(
        self,
        tower: VisionTower,
        observation: Observation,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        observation.refresh()
        if not tower.keywords:
            self._follow_checkpointing(tower)
        pixel_values = args[0] if args else kwargs["pixel_values"]
        options = call_options.get()
        choice = self.family.feature_choice(self.parts, options)
        grid = (pixel_values.shape[-2] // tower.patch_size, pixel_values.shape[-1] // tower.patch_size)
        layouts = self.family.layouts(self.parts, choice, len(pixel_values), grid, options)
        patches = grid[0] * grid[1] // self.parts.group
        plan = [plan_image(self.method, layout, patches, choice, self.parts.second_cut) for layout in layouts]
        places = None
        if self.method.shrinks_picture and any(target < patches for image in plan for target in image.targets):
            pixel_values, kwargs, plan, places = shrink(tower, pixel_values, kwargs, grid, plan)
            args, kwargs = args[1:], {**kwargs, "pixel_values": pixel_values}
            patches = len(places)
        frames = tuple(layout.tiles for layout in layouts) if options.get(MODALITY) == "video" else ()
        current = VisionPass(tower, choice, plan, patches, self.method, pixel_values, frames, places)
        return args, {**kwargs, PASS_KEYWORD: current}

    def _follow_checkpointing(self, tower: VisionTower) -> None:
        """Make layers that are recomputed in the backward pass find their pass again; it may be switched on later."""
        for layer in tower.layers:
            function = vars(layer).get(CHECKPOINT)
            if function is not None and getattr(function, "func", None) is not remember_pass:
                self.overrides.append(Override(layer, CHECKPOINT, remember_pass))

    def _after_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        current = kwargs.get(PASS_KEYWORD, silent_pass.get())
        current_pass.set(None)
        if not isinstance(current, VisionPass) or index >= current.last_layer:
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
        if current.order is not None and current.policy is not None:
            output.last_hidden_state = current.padded(output.last_hidden_state)
            if states is not None:
                output.hidden_states = tuple(
                    current.padded(state) if layer in current.choice.layers else state
                    for layer, state in enumerate(output.hidden_states)
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
    current = kwargs.get(PASS_KEYWORD, silent_pass.get())
    if isinstance(current, VisionPass):
        if index >= current.last_layer:
            return hidden_states
        if index == 0:
            hidden_states = current.arranged(hidden_states)
    return original(hidden_states, *args, **kwargs)


def run_silently(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The forward of a tower that does not hand keyword arguments on: its layers find the pass by themselves."""
    return under_pass(kwargs.pop(PASS_KEYWORD, None), partial(original, **kwargs), *args)


def remember_pass(original: Callable[..., Any], function: Callable[..., Any], *args: Any) -> Any:
    """A layer's gradient checkpointing: ``function`` runs under the pass at work, also when the tower is through."""
    return original(partial(under_pass, silent_pass.get(), function), *args)


def under_pass(current: ObservedPass | None, function: Callable[..., Any], *args: Any) -> Any:
    """Run ``function`` as part of the pass ``current``."""
    token = silent_pass.set(current)
    try:
        return function(*args)
    finally:
        silent_pass.reset(token)


def with_call_options(modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``get_image_features`` and the like, with their arguments at hand for the tower's hooks."""
    bound = inspect.signature(original).bind(*args, **kwargs)
    token = call_options.set({**bound.arguments, **bound.kwargs, MODALITY: modality})
    try:
        output = original(*args, **kwargs)
    finally:
        call_options.reset(token)
        latest_traces.set([])
    traces: list[ImageTrace] = getattr(output, TRACES, [])
    features = getattr(output, "pooler_output", None)
    if isinstance(features, Tensor) and len(features) == sum(len(trace.tiles) for trace in traces) > len(traces):
        output.pooler_output = join_rows(traces, features)
    elif any(trace.layout.pooled is not None and not trace.whole for trace in traces):
        # Tokens that the model pooled: all videos of a call have as many of them left.
        kept = [tokens[trace.placeholder_kept] for tokens, trace in zip(output.pooler_output, traces, strict=True)]
        output.pooler_output = torch.stack(kept)
    elif isinstance(features, list) and len(features) != len(traces) > 0:
        # Idefics3 joins the features of each sample, but placeholders come in one block for every tile.
        output.pooler_output = list(torch.split(torch.cat(features), [trace.visual_tokens for trace in traces]))
    return output


def pack_kept(original: Callable[..., Any], image_features: Any, image_sizes: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's packing of tiles, for images of which only some patches are left, or tokens between patches."""
    traces = latest_traces.get()
    blended = [trace.layout.blend is not None and trace.visual_tokens < trace.placeholders for trace in traces]
    if not any(blended) and all(tile.patches == len(tile.kept) for trace in traces for tile in trace.tiles):
        return original(image_features, image_sizes, *args, **kwargs)
    bound = inspect.signature(original).bind(image_features, image_sizes, *args, **kwargs)
    newline = bound.arguments.get("image_newline")
    packed = []
    for number, (trace, features) in enumerate(zip(traces, image_features, strict=True)):
        if trace.layout.blend is None:
            packed.append(pack_tiles(trace, features, newline))
        else:
            whole, _ = original([features], image_sizes[number : number + 1], *args, **kwargs)
            packed.append(whole[0][trace.placeholder_kept.to(whole[0].device)])
    return packed, torch.tensor([len(features) for features in packed], device=packed[0].device)


def join_groups(original: Callable[..., Any], features: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The model's pixel shuffle: kept patches come group by group, with padding behind them."""
    tiles = [tile for trace in latest_traces.get() for tile in trace.tiles]
    if all(len(tile.kept) == tile.patches for tile in tiles):
        return original(features, *args, **kwargs)
    kept, unit = len(tiles[0].kept), tiles[0].unit
    return features.flatten(1, -2)[:, : kept * unit].reshape(len(features), kept, unit * features.shape[-1])
