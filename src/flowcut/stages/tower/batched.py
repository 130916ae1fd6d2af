"""The cut inside the vision tower: watch every layer's attention, drop patches after some of them.

The state of a pass travels with the data, see ``forward_pass.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...methods.base import Method
from ...models.base import MODALITY, ModelFamily, ModelParts, VisionTower
from ..forward_pass import PART_KEYWORD, at_work, part_in, run_layer, running, running_part
from ..observing.attention import Observation
from ..observing.checkpointing import follow_checkpointing
from ..observing.overrides import Override
from ..observing.stage import Stage
from ..projector.features import TRACES, encode, join_groups, pack_kept
from .batched_pass import BatchedPass
from .shared import name_of
from .shrinking import shrink
from .tiles import plan_image


class BatchedStage(Stage):
    """Keeps a method attached to a model's vision towers until :meth:`close`."""

    def __init__(self, family: ModelFamily, parts: ModelParts, method: Method, owner: object) -> None:
        super().__init__()
        self.family = family
        self.parts = parts
        self.method = method
        self.narrowed: list[Narrowed] = []
        self.observations = [self._watch(tower) for tower in parts.towers]
        for modality in parts.placeholders:
            self.overrides.append(Override(parts.base, f"get_{modality}_features", partial(encode, owner, modality)))
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
        self.overrides.append(Override(tower.module, "forward", partial(run_tower, tower.keywords)))
        for index, layer in enumerate(tower.layers):
            # In front of transformers' own recorders of hidden states, which would otherwise keep the uncut ones.
            self.handles.append(
                layer.register_forward_hook(partial(self._after_layer, index), prepend=True, with_kwargs=True)
            )
            self.overrides.append(Override(layer, "forward", partial(run_or_skip, index)))
        for modules, narrow in ((tower.projections, narrow_projected), (tower.mlps, narrow_input)):
            for index, (layer, module) in enumerate(zip(tower.layers, modules, strict=True)):
                place = Narrowed(layer, module, partial(narrow, index), partial(widen_output, index))
                self.narrowed.append(place)
                self.handles += place.handles
        return observation

    def _follow(self) -> None:
        """Move the hooks of a layer's parts to those that took their place since, as PEFT and quantizers do it."""
        for place in self.narrowed:
            current = place.layer.get_submodule(place.name)
            if current is not place.module:
                for handle in place.handles:
                    handle.remove()
                    self.handles.remove(handle)
                place.lay_on(current)
                self.handles += place.handles

    def _enter(
        self,
        tower: VisionTower,
        observation: Observation,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        observation.refresh()
        self._follow()
        self.overrides += follow_checkpointing(tower.layers)
        pixel_values = args[0] if args else kwargs["pixel_values"]
        current_pass = at_work()
        options = {} if current_pass is None else current_pass.options
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
        name = name_of(self.parts)
        current = BatchedPass(tower, choice, plan, patches, self.method, pixel_values, frames, places, name)
        return args, {**kwargs, PART_KEYWORD: current}

    def _after_layer(
        self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        current = part_in(kwargs)
        if not isinstance(current, BatchedPass) or index >= current.last_layer:
            return None
        return current.cut(index, output)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        current: BatchedPass = kwargs[PART_KEYWORD]
        traces = current.traces(self.method.image_newline)
        states = output.hidden_states
        if states is not None:
            output.hidden_states = tuple(
                current.aligned(layer, state) if state is not None and layer in current.choice.layers else state
                for layer, state in enumerate(states)
            )
        if current.order is not None and current.policy is not None:
            restored = current.spread if current.spreads else current.padded
            output.last_hidden_state = restored(output.last_hidden_state)
            if states is not None:
                output.hidden_states = tuple(
                    restored(state) if layer in current.choice.layers else state
                    for layer, state in enumerate(output.hidden_states)
                )
        setattr(output, TRACES, traces)
        current_pass = at_work()
        if current_pass is not None:
            current_pass.images = traces
        return output


class Narrowed:
    """A part of a layer that runs on the tokens that go on, and on no others.

    Attributes:
        layer: the layer.
        name: of the part in it.
        module: what stood there when the hooks were laid.
        handles: of the hooks.
    """

    def __init__(
        self, layer: nn.Module, module: nn.Module, before: Callable[..., Any], behind: Callable[..., Any]
    ) -> None:
        self.layer = layer
        self.name = next(name for name, part in layer.named_modules() if part is module)
        self.before = before
        self.behind = behind
        self.lay_on(module)

    def lay_on(self, module: nn.Module) -> None:
        """Lay the hooks."""
        self.module = module
        self.handles = [module.register_forward_pre_hook(self.before), module.register_forward_hook(self.behind)]


def narrow_projected(index: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Pre-hook of a vision layer's projection: tokens that are cut after the layer need not pass through.

    Where attention was computed for the others alone, they stand in front already.
    """
    current = running_part()
    narrowing = current.narrowing(index) if isinstance(current, BatchedPass) else None
    if narrowing is None or not isinstance(current, BatchedPass):
        return None
    current.wide_inputs[index] = args[0]
    if narrowing.in_front:
        return (args[0][:, : narrowing.index.shape[1]], *args[1:])
    return (narrowing.narrow(args[0]), *args[1:])


def narrow_input(index: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Pre-hook of a vision layer's MLP, to the same end."""
    current = running_part()
    narrowing = current.narrowing(index) if isinstance(current, BatchedPass) else None
    if narrowing is None or not isinstance(current, BatchedPass):
        return None
    current.wide_inputs[index] = args[0]
    return (narrowing.narrow(args[0]), *args[1:])


def widen_output(index: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Hook of the same modules: gives their output the length that the layer expects."""
    current = running_part()
    narrowing = current.narrowing(index) if isinstance(current, BatchedPass) else None
    if narrowing is None or not isinstance(current, BatchedPass):
        return None
    return narrowing.widen(output, current.wide_inputs.pop(index))


def run_or_skip(index: int, original: Callable[..., Any], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A vision layer's forward: layers behind the feature layer hand their input on."""
    current = part_in(kwargs)
    if isinstance(current, BatchedPass):
        if index >= current.last_layer:
            return hidden_states
        if index == 0:
            hidden_states = current.arranged(hidden_states)
    return run_layer(original, hidden_states, *args, **kwargs)


def run_tower(keywords: bool, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The tower's forward; without ``keywords`` it hands none on to its layers, which find their part by themselves."""
    part = kwargs[PART_KEYWORD] if keywords else kwargs.pop(PART_KEYWORD)
    with running(part):
        return original(*args, **kwargs)
