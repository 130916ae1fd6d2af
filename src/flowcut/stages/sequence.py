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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ..counting import ModelCosts
from ..errors import FlowCutError
from ..methods.base import Method
from ..models.base import ModelParts
from ..trace import ImageTrace, SequenceTrace, Trace
from .cache import CacheState, read_state, write_state
from .columns import ColumnCut, all_columns, keep_columns, shifted_positions
from .generation import expand_with_traces, new_columns, prefill
from .overrides import Override
from .placeholders import find_placeholders, image_traces, mark_kept

PIXELS = {"image": "pixel_values"}
"""The forward argument that carries the raw input of each modality."""

TOKENS = ("input_ids", "inputs_embeds")


@dataclass(frozen=True)
class Pending:
    """What a pass leaves behind for the end of its forward and for its loss.

    Attributes:
        owner: the token of the stage it belongs to (not the stage, which would keep its model alive).
        state: what to leave on the cache.
        cut: the columns that stayed.
    """

    owner: object
    state: CacheState
    cut: ColumnCut


_pending: ContextVar[Pending | None] = ContextVar("flowcut_pending", default=None)


class SequenceStage:
    """Keeps the gate attached to a model until :meth:`close`."""

    def __init__(self, parts: ModelParts, method: Method) -> None:
        self.parts = parts
        self.method = method
        self.token = object()
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
        """Pre-hook of the base model's forward: encode the images and shorten the sequence."""
        _pending.set(None)
        call = self._named(module, args, kwargs)
        cache: Cache | None = call.get("past_key_values")
        state = read_state(cache)
        self._encode(call)
        encoded = call.get("mm_encoder_outputs") or {}
        features = {name: encoded[name] for name in self.parts.placeholders if encoded.get(name) is not None}
        if not features and state is None:
            if cache is None or not cache.get_seq_length():
                self.trace = Trace()
            return None
        if cache is not None and cache.is_compileable:
            raise FlowCutError(
                f"{type(cache).__name__} reserves its length before the tokens are cut, which is not supported. "
                'Use the default dynamic cache (cache_implementation=None or "dynamic").'
            )
        if state is not None:
            continue_from(state, call)
        self._shorten(call, state, features)
        return (), call

    def _named(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments of the call by name."""
        arguments = self.signature.bind(module, *args, **kwargs).arguments
        rest = arguments.pop("kwargs", {})
        return {**dict(list(arguments.items())[1:]), **rest}

    def _encode(self, call: dict[str, Any]) -> None:
        """Run the vision tower now, unless ``generate()`` already did."""
        for modality in self.parts.placeholders:
            pixels = PIXELS[modality]
            if call.get(pixels) is None:
                continue
            outputs = dict(call.get("mm_encoder_outputs") or {})
            if modality in outputs:
                raise ValueError(f"Give either {pixels} or mm_encoder_outputs[{modality!r}], not both.")
            encode = getattr(self.parts.base, f"get_{modality}_features")
            accepted = inspect.signature(encode).parameters
            arguments = {name: call[name] for name in accepted if name in call}
            outputs[modality] = encode(**arguments, return_dict=True)
            call.update({"mm_encoder_outputs": outputs, pixels: None})

    def _shorten(self, call: dict[str, Any], state: CacheState | None, features: dict[str, Any]) -> None:
        """Drop the columns of the cut tokens from every argument of the call, and note what was done."""
        tokens = next(call[name] for name in TOKENS if call.get(name) is not None)
        columns = tokens.shape[1]
        keep = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        images_of = self._mark(call, features, keep)
        mask = two_dimensional_mask(call)
        new_mask = torch.ones_like(keep, dtype=torch.long) if mask is None else mask[:, -columns:]
        past_mask = self._past_mask(call, state, new_mask)
        whole = all(image.whole for images in images_of for image in images)
        cut = all_columns(keep) if whole else keep_columns(keep, None if mask is None else new_mask)
        attended = torch.cat([past_mask, cut.take(new_mask)], dim=1)
        if state is not None or not whole:
            before = CacheState(past_mask, keep.new_zeros(len(keep), dtype=torch.long), past_mask.shape[1])
            after = self._apply(call, state or before, keep, cut, attended)
            _pending.set(Pending(self.token, after, cut))
        if features or not past_mask.shape[1]:
            uncut = past_mask.sum(dim=1) + new_mask.sum(dim=1)
            self.trace = self._traced(images_of, cut, attended, uncut)

    def _mark(self, call: dict[str, Any], features: dict[str, Any], keep: Tensor) -> list[list[ImageTrace]]:
        """Clear ``keep`` where tokens were cut; returns the images of every sample."""
        images_of: list[list[ImageTrace]] = [[] for _ in keep]
        model: Any = self.parts.base
        for modality, outputs in features.items():
            images = image_traces(outputs, modality)
            token = self.parts.placeholders[modality]
            found = find_placeholders(model.get_input_embeddings(), token, *(call.get(name) for name in TOKENS))
            for image, row in zip(images, mark_kept(keep, found, images, modality), strict=True):
                images_of[row].append(image)
        return images_of

    @staticmethod
    def _past_mask(call: dict[str, Any], state: CacheState | None, new_mask: Tensor) -> Tensor:
        """``[B, cached]``, 1 for the real tokens in the cache."""
        if state is not None:
            return state.attention_mask.to(new_mask)
        cache: Cache | None = call.get("past_key_values")
        cached = cache.get_seq_length() if cache is not None else 0
        mask: Tensor | None = call.get("attention_mask")
        return new_mask.new_ones(len(new_mask), cached) if mask is None else mask[:, :cached]

    def _apply(
        self, call: dict[str, Any], before: CacheState, keep: Tensor, cut: ColumnCut, attended: Tensor
    ) -> CacheState:
        """Write the shortened tokens, mask and positions into the call; returns the cache's new state."""
        batch, columns = keep.shape
        positions = call.get("position_ids")
        if positions is None:
            first = before.uncut_length
            positions = torch.arange(first, first + columns, device=keep.device)[None]
        compact = self.method.positions == "compact"
        positions = positions.expand(batch, columns)
        call["position_ids"] = shifted_positions(positions, cut, before.removed, ~keep, compact)
        # Always given, since transformers takes gaps in the positions for packed sequences where there is no mask.
        call["attention_mask"] = attended
        if call.get("input_ids") is not None:
            filler = next(token for token in range(9) if token not in self.parts.placeholders.values())
            call["input_ids"] = cut.take(call["input_ids"], filler)
        if call.get("inputs_embeds") is not None:
            call["inputs_embeds"] = cut.take(call["inputs_embeds"])
        return CacheState(attended, before.removed + (~keep).sum(dim=1), before.uncut_length + columns)

    def _traced(self, images_of: list[list[ImageTrace]], cut: ColumnCut, attended: Tensor, uncut: Tensor) -> Trace:
        sequence = SequenceTrace(
            visual_tokens=tuple(sum(image.visual_tokens for image in images) for images in images_of),
            columns=cut.columns(),
            attention_mask=attended,
            source_length=cut.source_length,
            uncut_attended=uncut,
            images_of=tuple(tuple(images) for images in images_of),
            costs=self.costs,
        )
        return Trace([image for images in images_of for image in images], sequence)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook behind the base model's forward: leave the state of the sequence on its cache."""
        pending = _pending.get()
        if pending is not None and pending.owner is self.token:
            write_state(output, pending.state)

    def _loss(
        self, original: Callable[..., Tensor], logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The model's own loss, over the tokens that are left."""
        pending = _pending.get()
        if pending is not None and pending.owner is self.token:
            cut = pending.cut
            if labels.shape[1] != cut.source_length or logits.shape[1] != cut.index.shape[1]:
                raise ValueError(
                    f"labels have {labels.shape[1]} columns; they need one for every column of input_ids "
                    f"({cut.source_length}), placeholders included (and logits_to_keep must stay 0)."
                )
            labels = cut.take(labels, -100)
        return original(logits, labels, *args, **kwargs)


def continue_from(state: CacheState, call: dict[str, Any]) -> None:
    """Reduce a call that continues on a cut cache to its new columns.

    Raises:
        FlowCutError: the attention mask does not cover the uncut sequence.
    """
    new = new_columns.get()
    if new is not None:
        for name in TOKENS:
            if call.get(name) is not None:
                call[name] = call[name][:, -new:]
        if call.get("position_ids") is not None:
            call["position_ids"] = call["position_ids"][..., -new:]
    columns = next(call[name].shape[1] for name in TOKENS if call.get(name) is not None)
    mask = two_dimensional_mask(call)
    if mask is not None and mask.shape[1] != state.uncut_length + columns:
        raise FlowCutError(
            f"The attention mask has {mask.shape[1]} columns, but the cache stands for {state.uncut_length} and "
            f"{columns} more were given. Pass the mask of the whole uncut sequence, cached part included."
        )


def two_dimensional_mask(call: dict[str, Any]) -> Tensor | None:
    """The call's attention mask.

    Raises:
        FlowCutError: it is not of the form ``[B, length]``.
    """
    mask: Tensor | None = call.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise FlowCutError(
            "Only two-dimensional attention masks (1 for tokens, 0 for padding) can be shortened together with "
            "the cut tokens; pass the [batch, length] mask and let the model expand it."
        )
    return mask
