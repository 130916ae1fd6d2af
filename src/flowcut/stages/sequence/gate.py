"""The gate in front of the language model: where the cut tokens leave the sequence.

``generate()`` and the user count in uncut columns: prompts, masks and position ids have one column for every
placeholder. The language model and its cache count in columns that are left. This gate, hooks on the base
model's ``forward``, translates between the two; what it must remember between steps stays on the cache object
that the steps share, so generations may interleave, and a copied cache copies it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...algorithm.columns import all_columns, keep_columns
from ...algorithm.positions import shifted_positions
from ...errors import FlowCutError, NotAppliedError
from ...methods.base import Method
from ...models.base import ModelParts
from ...models.costs import ModelCosts
from ...trace import CacheState, ImageTrace, SequenceTrace, Stretch, Trace
from ..decoder.decoder_pass import DecoderPass
from ..decoder.layers import DecoderStage
from ..forward_pass import PART_KEYWORD, ForwardPass, at_work, begin, end
from ..observing.overrides import Override
from ..projector.choosing import cut_projected, texts_of_images
from .cache import read_states, write_states
from .cache_argument import cache_in, with_current_name
from .generation import expand_with_traces, prefill, prompt_length
from .handing import handed_to
from .placeholders import find_placeholders, image_traces, mark_kept
from .places import places_of

PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}
"""The forward arguments that may carry the raw input of each modality."""

TOKENS = ("input_ids", "inputs_embeds")


class SequenceStage:
    """Keeps the gate attached to a model until :meth:`close`."""

    def __init__(self, parts: ModelParts, method: Method, owner: object) -> None:
        self.parts = parts
        self.method = method
        self.owner = owner
        self.trace = Trace()
        self.costs = ModelCosts.of(parts)
        self.decoder = DecoderStage(parts, method)
        self.signature = inspect.signature(type(parts.base).forward)
        base, top = parts.base, parts.top
        self.handles = [
            base.register_forward_pre_hook(self._enter, with_kwargs=True),
            base.register_forward_hook(self._leave),
        ]
        # The outermost of the two begins the pass, if no prefill did, and ends it.
        for module in (base,) if top is base else (base, top):
            self.handles += [
                module.register_forward_pre_hook(self._begin, prepend=True),
                module.register_forward_hook(self._end, always_call=True),
            ]
        self.overrides = []
        if top is not base:
            self.overrides = [
                Override(top, "loss_function", self._loss, slot="_loss_function"),
                Override(top, "_expand_multimodal_outputs", partial(expand_with_traces, parts)),
                Override(top, "_prefill", partial(prefill, owner)),
            ]

    def close(self) -> None:
        """Take every hook and override off again."""
        for handle in self.handles:
            handle.remove()
        for override in self.overrides:
            override.close()
        self.decoder.close()

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook of model and base model: begin a pass, unless one is at work around this call."""
        current = at_work(self.owner)
        if current is None or current.module is None:
            current = begin(self.owner) if current is None else current
            current.module = module
        elif current.module is module:
            # A call that was interrupted, as by a keyboard, left it behind.
            begin(self.owner).module = module

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook behind them, also after an error: end what :meth:`_begin` began."""
        current = at_work(self.owner)
        if current is not None and current.module is module:
            current.module = None
            end(current)

    def _enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Pre-hook of the base model's forward: encode the images and shorten the sequence."""
        current = at_work(self.owner)
        assert current is not None
        current.stretches, current.decoder = [], None
        call = self._named(module, args, kwargs)
        cache = cache_in(call)
        states = read_states(cache)
        self._encode(call)
        encoded = call.get("mm_encoder_outputs") or {}
        features = {name: encoded[name] for name in self.parts.placeholders if encoded.get(name) is not None}
        if not features and not states:
            if cache is None or not cache.get_seq_length():
                self.trace = Trace()
            return None
        if cache is not None and cache.is_compileable:
            raise FlowCutError(
                f"{type(cache).__name__} reserves its length before the tokens are cut, which is not supported. "
                'Use the default dynamic cache (cache_implementation=None or "dynamic").'
            )
        if states:
            continue_from(states[0], call, current.new_columns)
        self._shorten(current, call, states, features)
        return (), call

    def _named(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments of the call by name."""
        arguments = self.signature.bind(module, *args, **kwargs).arguments
        rest = arguments.pop("kwargs", {})
        return with_current_name({**dict(list(arguments.items())[1:]), **rest})

    def _encode(self, call: dict[str, Any]) -> None:
        """Run the vision tower now, unless ``generate()`` already did."""
        for modality in self.parts.placeholders:
            pixels = next((name for name in PIXELS[modality] if call.get(name) is not None), None)
            if pixels is None:
                continue
            outputs = dict(call.get("mm_encoder_outputs") or {})
            if modality in outputs:
                raise ValueError(f"Give either {pixels} or mm_encoder_outputs[{modality!r}], not both.")
            encoder = f"get_{modality}_features"
            others = [name for names in PIXELS.values() for name in names if name != pixels and name in call]
            alone = {**call, **dict.fromkeys([*others, "mm_encoder_outputs"])}
            handed = handed_to(self.parts.base, encoder, alone)
            if handed is None:
                # Pixels without an image, which the model's forward leaves alone.
                continue
            args, arguments = handed
            outputs[modality] = getattr(self.parts.base, encoder)(*args, **{**arguments, "return_dict": True})
            call.update({"mm_encoder_outputs": outputs, pixels: None})

    def _shorten(
        self, current: ForwardPass, call: dict[str, Any], states: tuple[CacheState, ...], features: dict[str, Any]
    ) -> None:
        """Drop the columns of the cut tokens from every argument of the call, and note what was done."""
        tokens = next(call[name] for name in TOKENS if call.get(name) is not None)
        columns = tokens.shape[1]
        keep = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        image = torch.full_like(keep, -1, dtype=torch.long)
        if self.method.cuts_projected and features:
            features = self._cut_projected(call, features, tokens)
        images, images_of = self._mark(call, features, keep, image)
        mask = two_dimensional_mask(call)
        new_mask = torch.ones_like(keep, dtype=torch.long) if mask is None else mask[:, -columns:]
        before = states[0] if states else self._uncut_state(call, new_mask)
        whole = not states and all(image.whole for image in images)
        nothing_to_drop = whole or not features
        cut = all_columns(keep) if nothing_to_drop else keep_columns(keep, None if mask is None else new_mask)
        if self.parts.grid_positions:
            positions = places_of(self.parts.base, call, before, keep)
        else:
            in_order = torch.arange(columns, device=keep.device)[None] + before.uncut_length
            given: Tensor | None = call.get("position_ids")
            positions = (in_order if given is None else given).expand(keep.shape)
        compact = self.method.positions == "compact"
        positions = shifted_positions(positions, cut, before.removed, ~keep, compact)
        stretch = Stretch(before, cut, cut.take(new_mask), positions, (~keep).sum(dim=1), cut.take(image, -1))
        stretches = [stretch]
        if not whole:
            self._write(call, stretch)
            if self.decoder.layers:
                targets = tuple(image.target for image in images)
                length = min((prompt_length(outputs, tokens) for outputs in features.values()), default=columns)
                states = states or (before,)
                decoder = DecoderPass(self.parts, self.method, stretch, states, targets, length, cache_in(call))
                call[PART_KEYWORD] = current.decoder = decoder
                stretches = decoder.stretches
            current.stretches = stretches
        if features or not before.attention_mask.shape[1]:
            uncut = before.attention_mask.sum(dim=1) + new_mask.sum(dim=1)
            self.trace = self._traced(images, images_of, stretches, uncut)

    def _cut_projected(self, call: dict[str, Any], features: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
        """Let the method choose among the projected features of every image; they go into ``call``."""
        model: Any = self.parts.base
        image = torch.full(tokens.shape[:2], -1, device=tokens.device)
        images, _ = self._mark(call, features, torch.ones_like(image, dtype=torch.bool), image)
        empty = next(iter(features.values())).pooler_output[0][:0]
        texts = [empty] * len(images)
        if self.method.reads_text:
            length = min(prompt_length(outputs, tokens) for outputs in features.values())
            texts = texts_of_images(model.get_input_embeddings(), call, image, len(images), length)
        cut, first = {}, 0
        for modality, outputs in features.items():
            own = image_traces(outputs, modality)
            cut[modality] = cut_projected(self.method, outputs, own, texts[first : first + len(own)])
            first += len(own)
        call["mm_encoder_outputs"] = {**call["mm_encoder_outputs"], **cut}
        return cut

    def _mark(
        self, call: dict[str, Any], features: dict[str, Any], keep: Tensor, image: Tensor
    ) -> tuple[list[ImageTrace], list[list[ImageTrace]]]:
        """Clear ``keep`` where tokens were cut, number the images in ``image``.

        Returns:
            The images by number (those of one modality after the other), and the images of every sample.
        """
        ordered: list[ImageTrace] = []
        images_of: list[list[ImageTrace]] = [[] for _ in keep]
        model: Any = self.parts.base
        for modality, outputs in features.items():
            images = image_traces(outputs, modality)
            token = self.parts.placeholders[modality]
            found = find_placeholders(model.get_input_embeddings(), token, *(call.get(name) for name in TOKENS))
            for trace, row in zip(images, mark_kept(keep, image, found, images, len(ordered), modality), strict=True):
                images_of[row].append(trace)
            ordered += images
        return ordered, images_of

    @staticmethod
    def _uncut_state(call: dict[str, Any], new_mask: Tensor) -> CacheState:
        """The state of a cache that was never cut, or of none."""
        cache = cache_in(call)
        cached = cache.get_seq_length() if cache is not None else 0
        mask: Tensor | None = call.get("attention_mask")
        past = new_mask.new_ones(len(new_mask), cached) if mask is None else mask[:, :cached]
        return CacheState(past, new_mask.new_zeros(len(new_mask), dtype=torch.long), cached)

    def _write(self, call: dict[str, Any], stretch: Stretch) -> None:
        """Put the shortened tokens, mask and positions into the call."""
        call["position_ids"] = stretch.positions
        # Always given, since transformers takes gaps in the positions for packed sequences where there is no mask.
        call["attention_mask"] = stretch.attended
        if call.get("input_ids") is not None:
            filler = next(token for token in range(9) if token not in self.parts.placeholders.values())
            call["input_ids"] = stretch.cut.take(call["input_ids"], filler)
        if call.get("inputs_embeds") is not None:
            call["inputs_embeds"] = stretch.cut.take(call["inputs_embeds"])

    def _traced(
        self,
        images: list[ImageTrace],
        images_of: list[list[ImageTrace]],
        stretches: list[Stretch],
        uncut: Tensor,
    ) -> Trace:
        sequence = SequenceTrace(
            visual_tokens=tuple(sum(image.visual_tokens for image in images) for images in images_of),
            stretches=stretches,
            stretch_layers=tuple(layer + 1 for layer in self.decoder.layers),
            uncut_attended=uncut,
            images_of=tuple(tuple(images) for images in images_of),
            costs=self.costs,
        )
        return Trace(images, sequence)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook behind the base model's forward: leave the state of the sequence on its cache."""
        current = at_work(self.owner)
        if current is None or not current.stretches:
            return
        cuts = len(self.decoder.layers)
        if len(current.stretches) != 1 + cuts:
            raise NotAppliedError(
                f"{len(current.stretches) - 1} of {cuts} cuts inside the language model took place: "
                "its layers were replaced or wrapped after attaching; detach, make the change, then attach."
            )
        write_states(output, tuple(stretch.after for stretch in current.stretches))

    def _loss(
        self, original: Callable[..., Tensor], logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The model's own loss, over the tokens that are left."""
        current = at_work(self.owner)
        if current is not None and current.stretches:
            cut = current.stretches[-1].cut
            if labels.shape[1] != cut.source_length or logits.shape[1] != cut.index.shape[1]:
                raise ValueError(
                    f"labels have {labels.shape[1]} columns; they need one for every column of input_ids "
                    f"({cut.source_length}), placeholders included (and logits_to_keep must stay 0)."
                )
            labels = cut.take(labels, -100)
        return original(logits, labels, *args, **kwargs)


def continue_from(state: CacheState, call: dict[str, Any], new: int | None) -> None:
    """Reduce a call that continues on a cut cache to its new columns.

    Args:
        state: of the cache.
        call: the arguments, changed in place.
        new: how many columns are new, where the caller handed over more of them.

    Raises:
        FlowCutError: the attention mask does not cover the uncut sequence.
    """
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
