"""The cut inside the vision tower: watch every layer's attention, drop patches after some of them.

The state of a pass travels with the data, as a keyword argument through the tower's layers. So passes in
several threads never meet, an exception leaves nothing behind, and a layer that gradient checkpointing runs
again in the backward pass repeats its cut instead of deciding anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...methods.base import Method
from ...models.base import MODALITY, ModelFamily, ModelParts, VisionTower
from ..observing.attention import PASS_KEYWORD, Observation, ObservedPass, current_pass, silent_pass
from ..observing.overrides import Override
from ..projector.features import TRACES, call_options, join_groups, latest_traces, pack_kept, with_call_options
from .batched_pass import VisionPass
from .shrinking import shrink
from .tiles import plan_image

CHECKPOINT = "_gradient_checkpointing_func"
"""Attribute of transformers' layers that calls them under gradient checkpointing."""


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
