"""The gate in front of the language model: where the cut tokens leave the sequence.

``generate()`` and the user count in uncut columns: prompts, masks and position ids have one column for every
placeholder. The language model and its cache count in columns that are left. This gate, hooks on the base
model's ``forward``, translates between the two; what it must remember between steps stays on the cache object
that the steps share, so generations may interleave, and a copied cache copies it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ..counting import ModelCosts
from ..errors import FlowCutError, NotAppliedError
from ..methods.base import Method
from ..models.base import ModelParts
from ..trace import ImageTrace, SequenceTrace, Trace
from .columns import ColumnCut, keep_columns, shifted_positions
from .overrides import Override
from .vision import TRACES

CACHE_STATE = "flowcut_state"
"""Attribute of a cache object whose sequence was cut."""

PIXELS = {"image": "pixel_values"}
"""The forward argument that carries the raw input of each modality."""


@dataclass(frozen=True)
class CacheState:
    """How the columns of a cut cache relate to the uncut sequence.

    Attributes:
        attention_mask: ``[B, cached]``, 1 for real tokens.
        removed: ``[B]``, columns that each sample lost.
        uncut_length: columns that the caller believes to be cached.
    """

    attention_mask: Tensor
    removed: Tensor
    uncut_length: int

    def cropped_to(self, cached: int) -> CacheState:
        """The state after the last entries were cropped off the cache (assisted decoding does that)."""
        excess = self.attention_mask.shape[1] - cached
        if excess == 0:
            return self
        return replace(
            self, attention_mask=self.attention_mask[:, :cached], uncut_length=self.uncut_length - excess
        )


@dataclass(frozen=True)
class Pending:
    """What a pass leaves behind for the end of its forward and for its loss."""

    stage: SequenceStage
    state: CacheState | None
    cut: ColumnCut | None


_pending: ContextVar[Pending | None] = ContextVar("flowcut_pending", default=None)
_new_columns: ContextVar[int | None] = ContextVar("flowcut_new_columns", default=None)


class SequenceStage:
    """Keeps the gate attached to a model until :meth:`close`."""

    def __init__(self, parts: ModelParts, method: Method) -> None:
        self.parts = parts
        self.method = method
        self.trace = Trace()
        self.costs = ModelCosts.of(parts)
        self.signature = inspect.signature(type(parts.base).forward)
        base, top = parts.base, parts.top
        self.handles = [
            base.register_forward_pre_hook(self._enter, with_kwargs=True),
            base.register_forward_hook(self._leave),
        ]
        self.overrides = []
        if top is not base:
            self.overrides = [
                Override(top, "loss_function", self._loss, slot="_loss_function"),
                Override(top, "_expand_multimodal_outputs", expand_with_traces),
                Override(top, "_prefill", prefill),
            ]

    def close(self) -> None:
        """Take every hook and override off again."""
        for handle in self.handles:
            handle.remove()
        for override in self.overrides:
            override.close()

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        _pending.set(None)
        bound = self.signature.bind(module, *args, **kwargs)
        call = {**dict(list(bound.arguments.items())[1:]), **bound.arguments.get("kwargs", {})}
        call.pop("kwargs", None)
        cache = call.get("past_key_values")
        state: CacheState | None = getattr(cache, CACHE_STATE, None)
        self._encode(call)
        features = {name: call["mm_encoder_outputs"][name] for name in self._modalities(call)}
        if not features and state is None:
            if cache is None or not cache.get_seq_length():
                self.trace = Trace()
            return None
        if cache is not None and cache.is_compileable:
            raise FlowCutError(
                f"{type(cache).__name__} reserves its length before the tokens are cut, which is not supported. "
                'Use the default dynamic cache (cache_implementation=None or "dynamic").'
            )
        state = self._restarted(call, cache, state)
        return (), self._shorten(call, cache, state, features)

    def _modalities(self, call: dict[str, Any]) -> list[str]:
        outputs = call.get("mm_encoder_outputs") or {}
        return [name for name in self.parts.placeholders if outputs.get(name) is not None]

    def _encode(self, call: dict[str, Any]) -> None:
        """Run the vision tower now, unless ``generate()`` already did."""
        for modality in self.parts.placeholders:
            pixels = PIXELS[modality]
            if call.get(pixels) is None:
                continue
            encode = getattr(self.parts.base, f"get_{modality}_features")
            accepted = inspect.signature(encode).parameters
            arguments = {name: call[name] for name in accepted if name in call and name != "kwargs"}
            outputs = dict(call.get("mm_encoder_outputs") or {})
            if modality in outputs:
                raise ValueError(f"Give either {pixels} or mm_encoder_outputs[{modality!r}], not both.")
            outputs[modality] = encode(**arguments, return_dict=True)
            call.update({"mm_encoder_outputs": outputs, pixels: None})

    def _restarted(
        self, call: dict[str, Any], cache: Cache | None, state: CacheState | None
    ) -> CacheState | None:
        """Match the columns given with the cache: the caller may have cropped it, or repeat what it holds."""
        if cache is None or state is None:
            return state
        state = state.cropped_to(cache.get_seq_length())
        new = _new_columns.get()
        if new is not None:
            for name in ("input_ids", "inputs_embeds"):
                if call.get(name) is not None:
                    call[name] = call[name][:, -new:]
            if call.get("position_ids") is not None:
                call["position_ids"] = call["position_ids"][..., -new:]
        mask, columns = self._mask(call), self._columns(call)
        if mask is not None and mask.shape[1] != state.uncut_length + columns:
            raise FlowCutError(
                f"The attention mask has {mask.shape[1]} columns, but the cache stands for {state.uncut_length} and "
                f"{columns} more were given. Pass the mask of the whole uncut sequence, cached part included."
            )
        return state

    @staticmethod
    def _columns(call: dict[str, Any]) -> int:
        tokens = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
        return int(tokens.shape[1])

    @staticmethod
    def _mask(call: dict[str, Any]) -> Tensor | None:
        mask: Tensor | None = call.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise FlowCutError(
                "Only two-dimensional attention masks (1 for tokens, 0 for padding) can be shortened together with "
                "the cut tokens; pass the [batch, length] mask and let the model expand it."
            )
        return mask

    def _shorten(
        self, call: dict[str, Any], cache: Cache | None, state: CacheState | None, features: dict[str, Any]
    ) -> dict[str, Any]:
        tokens = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
        batch, columns, device = tokens.shape[0], tokens.shape[1], tokens.device
        cached = cache.get_seq_length() if cache is not None else 0
        uncut_before = state.uncut_length if state is not None else cached
        mask = self._mask(call)
        new_mask = tokens.new_ones(batch, columns, dtype=torch.long) if mask is None else mask[:, -columns:]
        keep = torch.ones(batch, columns, dtype=torch.bool, device=device)
        images_of: list[list[ImageTrace]] = [[] for _ in range(batch)]
        traces: list[ImageTrace] = []
        for modality, outputs in features.items():
            found = image_traces(outputs, modality)
            traces += found
            placeholders = self._placeholders(call, modality)
            for image, row in zip(found, mark_kept(keep, placeholders, found, modality), strict=True):
                images_of[row].append(image)
        if all(image.whole for image in traces) and state is None:
            cut = None
            past_mask = new_mask[:, :0] if cached == 0 or mask is None else mask[:, :cached]
            attended = torch.cat([past_mask, new_mask], dim=1)
        else:
            if features:
                cut = keep_columns(keep, None if mask is None else new_mask)
            else:
                everything = torch.arange(columns, device=device).expand(batch, columns)
                cut = ColumnCut(everything, keep, columns)
            dropped = ~keep
            removed = state.removed if state is not None else torch.zeros(batch, dtype=torch.long, device=device)
            if state is not None:
                past_mask = state.attention_mask.to(new_mask)
            elif mask is None:
                past_mask = new_mask.new_ones(batch, cached)
            else:
                past_mask = mask[:, :cached]
            positions = call.get("position_ids")
            if positions is None:
                positions = torch.arange(uncut_before, uncut_before + columns, device=device)[None]
            attended = torch.cat([past_mask, cut.take(new_mask)], dim=1)
            compact = self.method.positions == "compact"
            call["position_ids"] = shifted_positions(
                positions.expand(batch, columns), cut, removed, dropped, compact
            )
            call["attention_mask"] = attended
            self._take_tokens(call, cut)
            state = CacheState(attended, removed + dropped.sum(dim=1), uncut_before + columns)
            _pending.set(Pending(self, state, cut))
        if features or not cached:
            self.trace = self._traced(traces, images_of, keep, new_mask, attended, cut)
        return call

    def _take_tokens(self, call: dict[str, Any], cut: ColumnCut) -> None:
        if call.get("input_ids") is not None:
            filler = next(token for token in range(9) if token not in self.parts.placeholders.values())
            call["input_ids"] = cut.take(call["input_ids"], filler)
        if call.get("inputs_embeds") is not None:
            call["inputs_embeds"] = cut.take(call["inputs_embeds"])

    def _placeholders(self, call: dict[str, Any], modality: str) -> Tensor:
        """Positions ``[P, 2]`` (row, column) of one modality's placeholders, in reading order."""
        token = self.parts.placeholders[modality]
        if call.get("input_ids") is not None:
            mask = call["input_ids"] == token
        else:
            embeds = call["inputs_embeds"]
            model: Any = self.parts.base
            mask = (embeds == model.get_input_embeddings()(torch.tensor(token, device=embeds.device))).all(dim=-1)
        return mask.nonzero()

    def _traced(
        self,
        traces: list[ImageTrace],
        images_of: list[list[ImageTrace]],
        keep: Tensor,
        new_mask: Tensor,
        attended: Tensor,
        cut: ColumnCut | None,
    ) -> Trace:
        batch, columns = keep.shape
        past = attended.shape[1] - (columns if cut is None else cut.index.shape[1])
        uncut = new_mask.sum(dim=1) + attended[:, :past].sum(dim=1)
        every_column = torch.arange(columns, device=keep.device).expand(batch, columns)
        sequence = SequenceTrace(
            visual_tokens=tuple(sum(image.visual_tokens for image in images) for images in images_of),
            columns=every_column if cut is None else cut.columns(),
            attention_mask=attended,
            source_length=columns,
            uncut_attended=uncut,
            images_of=tuple(tuple(images) for images in images_of),
            costs=self.costs,
        )
        return Trace(traces, sequence)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        pending = _pending.get()
        if pending is None or pending.stage is not self or pending.state is None:
            return
        values = output if isinstance(output, tuple) else output.values()
        for value in values:
            if isinstance(value, Cache):
                setattr(value, CACHE_STATE, pending.state)

    def _loss(self, original: Callable[..., Tensor], logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The model's own loss, over the tokens that are left."""
        pending = _pending.get()
        if pending is not None and pending.stage is self and pending.cut is not None:
            cut = pending.cut
            if labels.shape[1] != cut.source_length or logits.shape[1] != cut.index.shape[1]:
                raise ValueError(
                    f"labels have {labels.shape[1]} columns; they need one for every column of input_ids "
                    f"({cut.source_length}), placeholders included (and logits_to_keep must stay 0)."
                )
            labels = cut.take(labels, -100)
        return original(logits, labels, *args, **kwargs)


def image_traces(outputs: Any, modality: str) -> list[ImageTrace]:
    """The traces that the vision stage left on a tower's output.

    Raises:
        NotAppliedError: there are none, so these features did not pass through the method.
    """
    traces: list[ImageTrace] | None = getattr(outputs, TRACES, None)
    if traces is None:
        raise NotAppliedError(
            f"The {modality} features given to the model were not cut: they were computed before attaching, or by a "
            "replaced vision tower. Pass the pixel values, or features from this model's own "
            f"get_{modality}_features while the method is attached."
        )
    return traces


def mark_kept(keep: Tensor, placeholders: Tensor, images: list[ImageTrace], modality: str) -> list[int]:
    """Clear ``keep`` ``[B, L]`` in place at the placeholders of cut tokens; returns each image's row.

    Raises:
        ValueError: the prompts have more or fewer placeholders than the images need.
    """
    needed = sum(image.placeholders for image in images)
    if len(placeholders) != needed:
        raise ValueError(
            f"The prompts have {len(placeholders)} {modality} placeholders, but the {len(images)} {modality}(s) given "
            f"need {needed}. Give one block of placeholders for every {modality} (the processor writes them)."
        )
    kept = torch.cat([image.kept_placeholders().to(keep.device) for image in images])
    keep[placeholders[:, 0], placeholders[:, 1]] = kept
    ends = torch.tensor([image.placeholders for image in images], device=placeholders.device).cumsum(0)
    first, last = placeholders[torch.cat([ends.new_zeros(1), ends[:-1]]), 0], placeholders[ends - 1, 0]
    rows = torch.stack([first, last]).tolist()
    if rows[0] != rows[1]:
        raise ValueError(
            f"The placeholders of one {modality} are spread over two samples. Every sample needs whole blocks: "
            f"{[image.placeholders for image in images]} placeholders, in this order."
        )
    return list(rows[0])


class StandIn:
    """Takes the place of one image's features where only their number counts: that of the placeholders."""

    def __init__(self, image: int, placeholders: int) -> None:
        self.image = image
        self.placeholders = placeholders

    def __len__(self) -> int:
        return self.placeholders


def expand_with_traces(
    original: Callable[..., Any], input_ids: Tensor, mm_encoder_output: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """``generate()`` repeats images for its beams by counting placeholders, which cut features no longer match."""
    cut = {name: output for name, output in mm_encoder_output.items() if hasattr(output, TRACES)}
    features = {name: list(output.pooler_output) for name, output in cut.items()}
    for output in cut.values():
        output.pooler_output = [
            StandIn(image, trace.placeholders) for image, trace in enumerate(getattr(output, TRACES))
        ]
    expanded = original(input_ids, mm_encoder_output, *args, **kwargs)
    for name, output in cut.items():
        order = [stand_in.image for stand_in in output.pooler_output]
        output.pooler_output = [features[name][image] for image in order]
        setattr(output, TRACES, [getattr(output, TRACES)[image] for image in order])
    return expanded


def prefill(original: Callable[..., Any], input_ids: Tensor, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
    """``generate()``'s prefill. Continuing on a cache, it slices the prompt by the cache's cut length.

    Raises:
        FlowCutError: prefill in chunks; transformers then slices features by placeholder number.
    """
    if generation_config.prefill_chunk_size is not None:
        raise FlowCutError(
            f"prefill_chunk_size={generation_config.prefill_chunk_size} is not supported while a method is attached: "
            "after the cut the prompt is short. Leave prefill_chunk_size at None."
        )
    cache = model_kwargs.get("past_key_values")
    state: CacheState | None = getattr(cache, CACHE_STATE, None)
    new = None
    if state is not None:
        mask = model_kwargs.get("attention_mask")
        whole = mask.shape[1] if mask is not None else generation_config._mask_length
        new = whole - state.cropped_to(cache.get_seq_length()).uncut_length
    token = _new_columns.set(new)
    try:
        return original(input_ids, generation_config, model_kwargs, *args, **kwargs)
    finally:
        _new_columns.reset(token)
