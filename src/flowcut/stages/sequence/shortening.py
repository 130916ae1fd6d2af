"""What becomes of a call in front of the language model: the columns of cut tokens leave every argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...algorithm.columns import ColumnCut, Known, all_columns, keep_columns
from ...algorithm.positions import shifted_positions
from ...errors import FlowCutError
from ...methods.base import Method
from ...models.base import ModelParts
from ...trace import CacheState, ImageTrace, Stretch
from ..decoder.decoder_pass import DecoderPass
from ..forward_pass import PART_KEYWORD, ForwardPass
from ..projector.choosing import cut_projected, texts_of_images
from .cache import read_states
from .cache_argument import cache_in
from .generation import prompt_length
from .packing import check_lengths, check_packed, starts_of_samples
from .placeholders import Placeholders, are_placeholders, image_traces, rows_of_images
from .places import places_of
from .reservation import Reservation

TOKENS = ("input_ids", "inputs_embeds")

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Arguments that tell of every column whether it is text or of a picture, by which some models build their masks."""


@dataclass(frozen=True)
class Shortened:
    """What became of a call.

    Attributes:
        images: the images by number (those of one modality after the other).
        images_of: the images of every sample.
        stretches: the columns that each run of decoder layers sees; those behind a cut are still to come.
        uncut: ``[B]``, real tokens of every sample with nothing cut in this pass.
    """

    images: list[ImageTrace]
    images_of: list[list[ImageTrace]]
    stretches: list[Stretch]
    uncut: Tensor


class Shortening:
    """Shortens the calls of a base model's forward.

    Args:
        parts: the model.
        method: what cuts.
        layers: the decoder layers behind which it cuts.
    """

    def __init__(self, parts: ModelParts, method: Method, layers: tuple[int, ...]) -> None:
        self.parts = parts
        self.method = method
        self.layers = layers
        self.reservation = Reservation()

    def shorten(
        self, current: ForwardPass, call: dict[str, Any], states: tuple[CacheState, ...], features: dict[str, Any]
    ) -> Shortened:
        """Drop the columns of the cut tokens from every argument of the call, in place.

        Args:
            current: the pass; it is told the stretches of columns that go on.
            call: arguments of the base model's forward.
            states: of its cache, for every stretch of layers, if that was cut.
            features: the encoded images, by modality.
        """
        tokens = next(call[name] for name in TOKENS if call.get(name) is not None)
        columns = tokens.shape[1]
        keep = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        image = torch.full_like(keep, -1, dtype=torch.long)
        starts = None if states or cache_in(call) is not None else starts_of_samples(call)
        mask = two_dimensional_mask(call)
        padding = None if mask is None else mask[:, -columns:]
        found, padded = self._find(call, features, padding)
        if self.method.cuts_projected and features:
            features = self._cut_projected(call, features, found, tokens)
        images, images_of = self._mark(features, found, keep, image)
        new_mask = torch.ones_like(keep, dtype=torch.long) if padding is None else padding
        before = states[0] if states else self._uncut_state(call, new_mask)
        whole = not states and all(image.whole for image in images)
        nothing_to_drop = whole or not features
        left = [columns - sum(trace.placeholders - trace.visual_tokens for trace in own) for own in images_of]
        known = Known(min(left), max(left), *padded)
        every = all_columns(keep, unpadded=mask is None) if nothing_to_drop else None
        cut = keep_columns(keep, padding, image >= 0, known) if every is None else every
        if not whole:
            check_lengths(call)
            if starts is not None:
                check_packed(self.method, cut, bool(self.layers), self.parts.grid_positions)
        if self.parts.grid_positions:
            positions = places_of(self.parts.base, call, before, keep.shape, keep.device)
        else:
            first = before.uncut_length + self.parts.first_position
            in_order = torch.arange(first, first + columns, device=keep.device)[None]
            given: Tensor | None = call.get("position_ids")
            positions = (in_order if given is None else given).expand(keep.shape)
        compact = self.method.positions == "compact"
        dropped = ~keep
        positions = shifted_positions(positions, cut, before.removed, dropped, compact, starts)
        full = before.full and cut.even and cut.unpadded
        removed = dropped.sum(dim=1)
        stretch = Stretch(before, cut, cut.take(new_mask), positions, removed, cut.take(image, -1), full=full)
        stretches = [stretch]
        if not whole:
            in_text = None if starts is None else self._in_text(call, cut, before, dropped, starts)
            self._write(call, stretch, in_text)
            if self.layers:
                targets = tuple(image.target for image in images)
                length = self._prompt_length(features, tokens, before)
                states = states or (before,)
                decoder = DecoderPass(
                    self.parts, self.method, stretch, states, targets, length, cache_in(call), self.reservation
                )
                call[PART_KEYWORD] = current.decoder = decoder
                stretches = decoder.stretches
            else:
                self.reservation.shorten(cache_in(call), 0, range(len(self.parts.decoder_layers)), stretch)
            current.stretches = stretches
        uncut = new_mask.sum(dim=1)
        if before.attention_mask.shape[1]:
            uncut = before.attention_mask.sum(dim=1) + uncut
        return Shortened(images, images_of, stretches, uncut)

    def _in_text(
        self, call: dict[str, Any], cut: ColumnCut, before: CacheState, dropped: Tensor, starts: Tensor
    ) -> Tensor:
        """Positions in the text, ``[B, K]``, by which transformers tells the samples of a row apart."""
        given: Tensor = call["position_ids"]
        in_text = given if given.dim() == 2 else given[0]
        return shifted_positions(in_text, cut, before.removed, dropped, True, starts)

    @staticmethod
    def _prompt_length(features: dict[str, Any], tokens: Tensor, before: CacheState) -> int:
        """How many columns of a call are prompt, see :func:`prompt_length`."""
        lengths = (prompt_length(outputs, tokens, before.uncut_length) for outputs in features.values())
        return min(lengths, default=tokens.shape[1])

    def _cut_projected(
        self, call: dict[str, Any], features: dict[str, Any], found: dict[str, Placeholders], tokens: Tensor
    ) -> dict[str, Any]:
        """Let the method choose among the projected features of every image; they go into ``call``."""
        model: Any = self.parts.base
        images = [trace for modality, outputs in features.items() for trace in image_traces(outputs, modality)]
        empty = next(iter(features.values())).pooler_output[0][:0]
        texts = [empty] * len(images)
        if self.method.reads_text:
            image = torch.full(tokens.shape[:2], -1, device=tokens.device)
            self._mark(features, found, torch.ones_like(image, dtype=torch.bool), image)
            cache = cache_in(call)
            states = read_states(cache)
            before = states[0] if states else self._uncut_state(call, torch.ones_like(image))
            length = self._prompt_length(features, tokens, before)
            texts = texts_of_images(model.get_input_embeddings(), call, image, len(images), length)
        cut, first = {}, 0
        for modality, outputs in features.items():
            own = image_traces(outputs, modality)
            cut[modality] = cut_projected(self.method, outputs, own, texts[first : first + len(own)])
            first += len(own)
        call["mm_encoder_outputs"] = {**call["mm_encoder_outputs"], **cut}
        return cut

    def _find(
        self, call: dict[str, Any], features: dict[str, Any], padding: Tensor | None
    ) -> tuple[dict[str, Placeholders], tuple[bool, bool]]:
        """Where the placeholders are, and what the batch is padded with.

        Args:
            call: arguments of the base model's forward.
            features: the encoded images, by modality.
            padding: ``[B, L]``, the mask of the call's columns.

        Returns:
            The placeholders by modality; whether there is no padding at all, and whether there is none at the end.
        """
        model: Any = self.parts.base
        given = [call.get(name) for name in TOKENS]
        places = [
            are_placeholders(model.get_input_embeddings(), self.parts.placeholders[modality], *given)
            for modality in features
        ]
        # Asked for together, since the host waits for the device once for each question.
        questions = [own.sum(dim=1) for own in places]
        if padding is not None:
            real = padding.bool()
            questions += [real.all()[None], real[:, -1].all()[None]]
        answers = torch.cat(questions).tolist() if questions else []
        unpadded, full_at_end = (True, True) if padding is None else map(bool, answers[-2:])
        found = {}
        for number, (modality, outputs) in enumerate(features.items()):
            rows = len(places[number])
            per_row = answers[number * rows : (number + 1) * rows]
            images = rows_of_images(per_row, image_traces(outputs, modality), modality)
            found[modality] = Placeholders(places[number], images)
        return found, (unpadded, full_at_end)

    @staticmethod
    def _mark(
        features: dict[str, Any], found: dict[str, Placeholders], keep: Tensor, image: Tensor
    ) -> tuple[list[ImageTrace], list[list[ImageTrace]]]:
        """Clear ``keep`` where tokens were cut, number the images in ``image``.

        Returns:
            The images by number (those of one modality after the other), and the images of every sample.
        """
        ordered: list[ImageTrace] = []
        images_of: list[list[ImageTrace]] = [[] for _ in keep]
        for modality, outputs in features.items():
            images = image_traces(outputs, modality)
            found[modality].keep(keep, images)
            found[modality].write_numbers(image, images, len(ordered))
            for trace, row in zip(images, found[modality].rows, strict=True):
                images_of[row].append(trace)
            ordered += images
        return ordered, images_of

    @staticmethod
    def _uncut_state(call: dict[str, Any], new_mask: Tensor) -> CacheState:
        """The state of a cache that was never cut, or of none."""
        cache = cache_in(call)
        # Of a static cache it is a tensor.
        cached = int(cache.get_seq_length()) if cache is not None else 0
        mask: Tensor | None = call.get("attention_mask")
        past = new_mask.new_ones(len(new_mask), cached) if mask is None else mask[:, :cached]
        removed = new_mask.new_zeros(len(new_mask), dtype=torch.long)
        return CacheState(past, removed, cached, cached, full=mask is None or not cached)

    def _write(self, call: dict[str, Any], stretch: Stretch, in_text: Tensor | None) -> None:
        """Put the shortened tokens, mask and positions into the call; ``in_text`` where samples share rows."""
        call["position_ids"] = stretch.positions
        in_order = self.method.positions == "compact" or self.parts.grid_positions
        call["attention_mask"] = stretch.needed_mask(in_order) if in_text is None else None
        if in_text is not None and self.parts.grid_positions:
            call["position_ids"] = torch.cat([in_text[None], stretch.positions])
        if call.get("input_ids") is not None:
            filler = next(token for token in range(9) if token not in self.parts.placeholders.values())
            call["input_ids"] = stretch.cut.take(call["input_ids"], filler)
        if call.get("inputs_embeds") is not None:
            call["inputs_embeds"] = stretch.cut.take(call["inputs_embeds"])
        for name in TOKEN_TYPES:
            types: Tensor | None = call.get(name)
            if types is not None and types.shape[1] == stretch.cut.source_length:
                call[name] = stretch.cut.take(types)


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
