"""The cut inside a vision tower that packs images of any size into one sequence (Qwen2-VL).

Such a tower has no batch dimension: ``cu_seqlens`` says where one image, frame or window ends and the next begins.
Here every image (or video) follows its own schedule, with policies of its own; a layer behind a cut gets the
``cu_seqlens`` and rotary embeddings of the tokens that are left, so a token attends to the rest of the segment it had
in the uncut image, and to nothing else. As in ``vision.py`` the state of a pass travels with the data.

Behind the merger, what is left stands at its uncut place among zeros, as the model's own code expects (it puts
windows back in order and splits images by their uncut sizes); ``get_image_features`` then hands out the kept ones.

States that a model reads from the middle of the tower (DeepStack) are those of tokens that may be cut later. Their
mergers work on what is left in the end: they wait until the tower is through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotAppliedError
from ..methods.base import LayerView, Method
from ..models.base import ModelParts
from ..trace import ImageTrace
from .attention import PASS_KEYWORD, Observation, current_pass
from .overrides import Override
from .packed_image import PackedImage, pairs_of_images
from .vision import TRACES


class PackedPass:
    """One packed sequence on its way through the tower.

    Args:
        parts: the model.
        method: what cuts.
        grids: (time, height, width) of every image, in patches.
        order: see :class:`~flowcut.models.base.Packing`.
    """

    def __init__(self, parts: ModelParts, method: Method, grids: list[tuple[int, ...]], order: Tensor | None) -> None:
        assert parts.tower.packing is not None
        self.method = method
        self.packing = parts.tower.packing
        self.depth = len(parts.tower.layers)
        self.order = order
        self.images = [PackedImage(method, grid, self.packing, parts.second_cut) for grid in grids]
        self.cuts = any(image.cut for image in self.images)
        self.alive: dict[int, Tensor] = {}
        self.chunks: dict[int, list[tuple[Tensor, ...]]] = {}
        self.kept: dict[int, Tensor | None] = {}
        self.length_into: dict[int, int] = {}
        self.bounds: dict[int, tuple[Tensor, Tensor]] = {}
        self._alive_now: Tensor | None = None
        self._rotary: tuple[Tensor, Any] | None = None
        self._waiting: list[tuple[nn.Module, Tensor, Tensor | None]] = []

    def arguments(self, layer: int, given: dict[str, Any]) -> dict[str, Any]:
        """What ``layer`` must be called with instead of ``given``, which fits the uncut sequence."""
        if layer not in self.kept and self._alive_now is not None:
            self.alive[layer] = self._alive_now
        alive = self.alive.get(layer)
        whole: Tensor = given["cu_seqlens"]
        if alive is None:
            self.bounds[layer] = (whole, whole)
            return {}
        bounds = torch.searchsorted(alive, whole.to(alive)).to(whole)
        bounds = bounds[bounds.diff(prepend=bounds.new_full((1,), -1)) > 0]
        self.bounds[layer] = (bounds, whole)
        if self._rotary is None or self._rotary[0] is not alive:
            self._rotary = (alive, tuple(part[alive] for part in given["position_embeddings"]))
        changed = {"cu_seqlens": bounds, "position_embeddings": self._rotary[1]}
        if given.get("max_seqlen") is not None:
            changed["max_seqlen"] = int(bounds.diff().max())
        return changed

    def narrowing(self, layer: int) -> None:
        """Every token's attention is computed: q, k, v come segment by segment, complete only with the last one."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any) -> Any:
        """Collect a layer's q, k, v, which may come segment by segment; complete, they go to the policies."""
        if not self.cuts or layer in self.kept:
            return mask
        chunks = self.chunks.setdefault(layer, [])
        chunks.append((query.detach(), key.detach(), value.detach()))
        if sum(chunk[0].shape[2] for chunk in chunks) == sum(image.count for image in self.images):
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
                self._choose(layer, scaling, self.chunks.pop(layer))
        return mask

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
        """The tokens that go on after ``layer``, of ``hidden`` ``[S, width]``."""
        kept = self.kept.get(layer)
        return hidden if kept is None else hidden[kept.to(hidden.device)]

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
            for image in self.images:
                image.counts_after.append(image.count)
            kept = self.kept.get(layer)
            if kept is not None:
                self._alive_now = kept if self._alive_now is None else self._alive_now[kept]
        return self.narrow(layer, hidden)

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


_latest: ContextVar[PackedPass | None] = ContextVar("flowcut_packed_pass", default=None)
"""The pass whose tower is running in this thread; the merger gets no keyword arguments."""


class PackedStage:
    """Keeps a method attached to a packed vision tower until :meth:`close`."""

    def __init__(self, parts: ModelParts, method: Method) -> None:
        assert parts.tower.packing is not None
        self.parts = parts
        self.method = method
        self.packing = parts.tower.packing
        tower = parts.tower
        self.observation = Observation(tower.attentions)
        self.handles = [
            tower.module.register_forward_pre_hook(self._enter, with_kwargs=True),
            tower.module.register_forward_hook(leave, with_kwargs=True),
            self.packing.merger.register_forward_hook(spread_output),
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
        self.overrides = [Override(parts.base, name, hand_out_kept) for name in self.packing.encoders.values()]

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
        grid_thw: Tensor = args[1] if len(args) > 1 else kwargs["grid_thw"]
        grids = [tuple(grid) for grid in grid_thw.tolist()]
        current = PackedPass(self.parts, self.method, grids, self.packing.order(grid_thw, kwargs))
        _latest.set(current)
        return args, {**kwargs, PASS_KEYWORD: current}


def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Hook behind the tower: leave the traces on its output."""
    _latest.set(None)
    current: PackedPass = kwargs[PASS_KEYWORD]
    setattr(output, TRACES, current.traces())
    intermediate = current.merge_postponed()
    if intermediate:
        output.deepstack_features = intermediate
    return output


def before_layer(
    index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pre-hook of a vision layer: segments and rotary embeddings of the tokens that are left."""
    current: PackedPass | None = kwargs.get(PASS_KEYWORD)
    return None if current is None else (args, {**kwargs, **current.arguments(index, kwargs)})


def after_layer(index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Hook of a vision layer: the tokens that go on."""
    current: PackedPass | None = kwargs.get(PASS_KEYWORD)
    return None if current is None else current.cut(index, output)


def narrow_input(index: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Pre-hook of a vision layer's MLP: tokens that are cut after the layer need not pass through it."""
    current = current_pass.get()
    if not isinstance(current, PackedPass):
        return None
    return (current.narrow(index, args[0]), *args[1:])


def widen_output(index: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Hook of a vision layer's MLP: gives its output the length that the layer expects."""
    current = current_pass.get()
    current_pass.set(None)
    kept = current.kept.get(index) if isinstance(current, PackedPass) else None
    if not isinstance(current, PackedPass) or kept is None:
        return None
    return output.new_zeros(current.length_into[index], output.shape[1]).index_copy(0, kept.to(output.device), output)


def spread_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Hook of the merger: see :meth:`PackedPass.spread`."""
    current = _latest.get()
    return None if current is None else current.spread(output)


def postpone_merging(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Pre-hook of a merger of intermediate states: it gets nothing to do before the tower is through."""
    current = _latest.get()
    if current is None or not current.cuts:
        return None
    current.postpone(module, args[0])
    return (args[0][:0], *args[1:])


def hand_out_kept(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``get_image_features`` and its like: the features of the kept tokens, image by image."""
    as_tuple = kwargs.get("return_dict") is False
    outputs = original(*args, **{**kwargs, "return_dict": True})
    traces: list[ImageTrace] = getattr(outputs, TRACES)
    outputs.pooler_output = only_kept(traces, outputs.pooler_output)
    intermediate = getattr(outputs, "deepstack_features", None)
    if intermediate is not None:
        outputs.deepstack_features = [only_kept(traces, features) for features in intermediate]
    return outputs.to_tuple() if as_tuple else outputs


def only_kept(traces: list[ImageTrace], features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Features ``[tokens, width]`` of every image, without those of the cut tokens."""
    return tuple(
        tokens if len(tokens) == trace.visual_tokens else tokens[trace.placeholder_kept.to(tokens.device)]
        for trace, tokens in zip(traces, features, strict=True)
    )
