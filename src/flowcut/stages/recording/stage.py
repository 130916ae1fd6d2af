"""What lies on a model while it is observed: overrides that see each call, observations of its attention."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ...errors import FlowCutError
from ...models.base import MODALITY, ModelFamily, ModelParts, VisionTower
from ...trace import ImageFlow
from ..forward_pass import at_work, joined, running, running_part
from ..observing.attention import Observation
from ..observing.overrides import Override
from ..observing.stage import Stage
from ..sequence.cache_argument import cache_in
from ..sequence.placeholders import are_placeholders
from ..tower.packed import patches_and_grids
from .batched import BatchedRecording
from .language import LanguageRecording
from .packed import PackedRecording


class RecordingStage(Stage):
    """Watches a model until :meth:`close`.

    Args:
        family, parts: the model.
        received: whether to record what attention patches pay to the global token.
        language: whether to record the language model.

    Attributes:
        images: what was seen, in the order of the calls.
    """

    def __init__(self, family: ModelFamily, parts: ModelParts, received: bool, language: bool) -> None:
        super().__init__()
        self.family = family
        self.parts = parts
        self.received = received
        self.owner = object()
        self.images: list[ImageFlow] = []
        self._unread: list[int] = []
        try:
            self._open(language)
        except BaseException:
            self.close()
            raise

    def _open(self, language: bool) -> None:
        base = self.parts.base
        for tower in self.parts.towers:
            self.observations.append(Observation(tower.attentions))
            observation = self.observations[-1]
            self.overrides.append(Override(tower.module, "forward", partial(self._tower, tower, observation)))
            self.handles += [layer.register_forward_hook(put_out) for layer in tower.layers]
        for modality in self.parts.placeholders:
            encoder = f"get_{modality}_features"
            if hasattr(base, encoder):
                self.overrides.append(Override(base, encoder, partial(self._encode, modality)))
        self.overrides.append(Override(base, "_replicate_for_data_parallel", refuse_replicas))
        attentions = [getattr(layer, "self_attn", None) for layer in self.parts.decoder_layers]
        seen = [number for number, one in enumerate(attentions) if hasattr(one, "config")]
        if language and seen:
            modules = [module for module in attentions if isinstance(module, nn.Module) and hasattr(module, "config")]
            self.observations.append(Observation(modules, seen))
            self.overrides.append(Override(base, "forward", partial(self._read, self.observations[-1])))

    def forget(self) -> None:
        """Begin anew."""
        self.images.clear()
        self._unread.clear()

    def _encode(self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``get_image_features`` and the like, with their arguments at hand for the tower."""
        bound = inspect.signature(original).bind(*args, **kwargs)
        with joined(self.owner) as current:
            if current.options:
                # A video that the model encodes as images.
                return original(*args, **kwargs)
            current.options = {**bound.arguments, **bound.kwargs, MODALITY: modality}
            try:
                return original(*args, **kwargs)
            finally:
                current.options = {}

    def _tower(
        self, tower: VisionTower, observation: Observation, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """A tower's forward."""
        observation.refresh()
        current = at_work(self.owner)
        options = {} if current is None else current.options
        recording = self._recording(tower, args, kwargs, options)
        with running(recording):
            output = original(*args, **kwargs)
        images = recording.finish(options.get(MODALITY, "image"))
        self._unread += range(len(self.images), len(self.images) + len(images))
        self.images += images
        return output

    def _recording(
        self, tower: VisionTower, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> BatchedRecording | PackedRecording:
        if tower.packing is not None:
            grids, pixels = (tower.packing.read or patches_and_grids)(args, kwargs)
            order = tower.packing.order(grids, kwargs)
            sizes = [tuple(grid) for grid in grids.tolist()]
            rows = None if tower.packing.rows is None else tower.packing.rows(args, kwargs)
            return PackedRecording(self.parts, sizes, order, pixels[0].device, self.received, rows)
        pixel_values = args[0] if args else kwargs["pixel_values"]
        choice = self.family.feature_choice(self.parts, options)
        grid = (pixel_values.shape[-2] // tower.patch_size, pixel_values.shape[-1] // tower.patch_size)
        layouts = self.family.layouts(self.parts, choice, len(pixel_values), grid, options)
        return BatchedRecording(tower, self.parts.second_cut, choice, layouts, grid, pixel_values.device, self.received)

    def _read(self, observation: Observation, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The base model's forward, which reads prompts."""
        call = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        call = {**call, **call.pop("kwargs", {})}
        recording = self._language(call)
        if recording is None:
            return original(*args, **kwargs)
        observation.refresh()
        with running(recording):
            output = original(*args, **kwargs)
        self._match(recording)
        return output

    def _language(self, call: dict[str, Any]) -> LanguageRecording | None:
        """The recording of a call, or ``None`` where its prompts hold no visual token."""
        tokens: Tensor | None = call.get("input_ids")
        embedded: Tensor | None = call.get("inputs_embeds")
        given = tokens if tokens is not None else embedded
        if given is None:
            return None
        base: Any = self.parts.base
        places = {
            modality: are_placeholders(base.get_input_embeddings(), token, tokens, embedded)
            for modality, token in self.parts.placeholders.items()
        }
        if not any(bool(one.any()) for one in places.values()):
            return None
        cache = cache_in(call)
        cached = 0 if cache is None else int(cache.get_seq_length())
        mask = call.get("attention_mask")
        shape = (given.shape[0], cached + given.shape[1])
        if isinstance(mask, Tensor) and mask.dim() == 2:
            real = mask[:, : shape[1]].bool()
        else:
            real = torch.ones(shape, dtype=torch.bool, device=given.device)
        return LanguageRecording(self.parts.language_model.config, places, real)

    def _match(self, recording: LanguageRecording) -> None:
        """Give the images that were encoded since the last prompts what the language model looked at."""
        unread, self._unread = self._unread, []
        for modality, places in recording.places.items():
            numbers = [number for number in unread if self.images[number].modality == modality]
            counts = [self.images[number].visual_tokens for number in numbers]
            if sum(counts) != int(places.sum()) or not recording.attention:
                warnings.warn(
                    f"The prompts hold {int(places.sum())} visual tokens of {modality}s, and the {len(numbers)} "
                    f"{modality}(s) encoded for them have {sum(counts)}: what the language model looked at is not "
                    "recorded for this call. Give pictures and prompt in one call, without copies of the prompt "
                    "(beams, several answers).",
                    stacklevel=2,
                )
            elif numbers:
                for number, flow in zip(numbers, recording.finish(modality, counts), strict=True):
                    self.images[number] = replace(self.images[number], language=flow)


def put_out(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Hook behind a vision layer."""
    current = running_part()
    if isinstance(current, (BatchedRecording, PackedRecording)):
        current.put_out(output[0] if isinstance(output, tuple) else output)


def refuse_replicas(original: Callable[[], nn.Module]) -> NoReturn:
    """``nn.DataParallel`` would run the original's layers.

    Raises:
        FlowCutError: always.
    """
    raise FlowCutError("A model cannot be observed inside nn.DataParallel. Observe the model itself, on one device.")
