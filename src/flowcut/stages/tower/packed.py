"""The cut inside a vision tower that packs images of any size into one sequence (Qwen2-VL).

Such a tower has no batch dimension: ``cu_seqlens`` says where one image, frame or window ends and the next begins.
Here every image (or video) follows its own schedule, with policies of its own; a layer behind a cut gets the
``cu_seqlens`` and rotary embeddings of the tokens that are left, so a token attends to the rest of the segment it had
in the uncut image, and to nothing else. As everywhere, the state of a pass travels with the data.

Behind the merger, what is left stands at its uncut place among zeros, as the model's own code expects (it puts
windows back in order and splits images by their uncut sizes); ``get_image_features`` then hands out the kept ones.

States that a model reads from the middle of the tower (DeepStack) are those of tokens that may be cut later. Their
mergers work on what is left in the end: they wait until the tower is through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...methods.base import Method
from ...models.base import ModelParts
from ..forward_pass import PART_KEYWORD, part_in, run_layer, running, running_part
from ..observing.attention import Observation
from ..observing.checkpointing import follow_checkpointing
from ..observing.overrides import Override
from ..observing.stage import Stage
from ..projector.features import TRACES, hand_out_kept
from .packed_pass import PackedPass

PATCHES = "hidden_states"
"""What most packed towers call their pixels."""


class PackedStage(Stage):
    """Keeps a method attached to a packed vision tower until :meth:`close`."""

    def __init__(self, parts: ModelParts, method: Method) -> None:
        assert parts.tower.packing is not None
        super().__init__()
        self.parts = parts
        self.method = method
        self.packing = parts.tower.packing
        tower = parts.tower
        self.observations = [Observation(tower.attentions)]
        self.handles = [
            tower.module.register_forward_pre_hook(self._enter, with_kwargs=True),
            tower.module.register_forward_hook(leave, with_kwargs=True),
            *([] if self.packing.restores else [self.packing.merger.register_forward_hook(spread_output)]),
            *(merger.register_forward_pre_hook(postpone_merging) for merger in self.packing.deepstack),
        ]
        for index, (layer, mlp) in enumerate(zip(tower.layers, tower.mlps, strict=True)):
            self.handles += [
                layer.register_forward_pre_hook(partial(before_layer, index), with_kwargs=True),
                # In front of transformers' own recorders of hidden states, which would keep the uncut ones.
                layer.register_forward_hook(partial(after_layer, index), prepend=True, with_kwargs=True),
                mlp.register_forward_pre_hook(partial(narrow_input, index)),
                mlp.register_forward_hook(partial(widen_output, index)),
            ]
        encoders = [name for name in self.packing.encoders.values() if hasattr(parts.base, name)]
        self.overrides = [Override(parts.base, name, hand_out_kept) for name in encoders]
        self.overrides.append(Override(tower.module, "forward", run_tower))
        self.overrides += [Override(layer, "forward", run_layer) for layer in tower.layers]

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.observations[0].refresh()
        self.overrides += follow_checkpointing(self.parts.tower.layers)
        grids, pixels = (self.packing.read or patches_and_grids)(args, kwargs)
        order = self.packing.order(grids, kwargs)
        rows = None if self.packing.rows is None else self.packing.rows(args, kwargs)
        current = PackedPass(self.parts, self.method, [tuple(grid) for grid in grids.tolist()], order, pixels, rows)
        if self.packing.arrange is not None:
            current.arrangement = self.packing.arrange(grids)
        return args, {**kwargs, PART_KEYWORD: current}


def patches_and_grids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
    """Grids and pixels of a tower that is called with patches ``[patches, values]`` and ``grid_thw``."""
    grids: Tensor = args[1] if len(args) > 1 else kwargs["grid_thw"]
    pixels: Tensor = args[0] if args else kwargs[PATCHES if PATCHES in kwargs else "pixel_values"]
    return grids, torch.split(pixels, grids.prod(dim=1).tolist())


def run_tower(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The tower's forward: its mergers, which get no keyword arguments, find their part."""
    with running(kwargs.get(PART_KEYWORD)):
        return original(*args, **kwargs)


def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Hook behind the tower: leave the traces on its output."""
    current: PackedPass = kwargs[PART_KEYWORD]
    setattr(output, TRACES, current.traces())
    intermediate = current.merge_postponed()
    if intermediate:
        output.deepstack_features = intermediate
    return output


def before_layer(
    index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pre-hook of a vision layer: segments and rotary embeddings of the tokens that are left."""
    current = part_in(kwargs)
    if not isinstance(current, PackedPass):
        return None
    if len(args) > 1:
        args, kwargs = args[:1], {**kwargs, "attention_mask": args[1]}
    if index == 0:
        args = (current.arranged(args[0]), *args[1:])
    return args, {**kwargs, **current.arguments(index, kwargs, args[0])}


def after_layer(index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Hook of a vision layer: the tokens that go on."""
    current = part_in(kwargs)
    return current.cut(index, output) if isinstance(current, PackedPass) else None


def narrow_input(index: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Pre-hook of a vision layer's MLP: tokens that are cut after the layer need not pass through it."""
    current = running_part()
    if not isinstance(current, PackedPass):
        return None
    return (current.narrow(index, args[0]), *args[1:])


def widen_output(index: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Hook of a vision layer's MLP: gives its output the length that the layer expects."""
    current = running_part()
    kept = current.kept.get(index) if isinstance(current, PackedPass) else None
    if not isinstance(current, PackedPass) or kept is None:
        return None
    whole = output.new_zeros(*output.shape[:-2], current.length_into[index], output.shape[-1])
    return whole.index_copy(-2, kept.to(output.device), output)


def spread_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Hook of the merger: see :meth:`PackedPass.spread`."""
    current = running_part()
    return current.spread(output) if isinstance(current, PackedPass) else None


def postpone_merging(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Pre-hook of a merger of intermediate states: it gets nothing to do before the tower is through."""
    current = running_part()
    if not isinstance(current, PackedPass) or not current.cuts:
        return None
    current.postpone(module, args[0])
    return (args[0][:0], *args[1:])
