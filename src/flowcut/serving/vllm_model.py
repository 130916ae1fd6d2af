"""The plug-in's model for vLLM: its Transformers backend, with the vision encoder cut."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.config import CompilationMode, VllmConfig, set_current_vllm_config
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
    TransformersMultiModalForCausalLM,
)
from vllm.model_executor.models.transformers.base import Base
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems, ImageSize
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from ..attaching import attach_encoder
from ..encoding import skeleton_of, tokens_for
from ..errors import FlowCutError, UnsupportedModelError
from ..methods import Method
from ..models import find_parts
from ..stages.observing.overrides import Override
from ..trace import ImageTrace
from .choice import ASK_FOR_POSITIONS, identity_of, method_for
from .placeholders import CHANNELS, coded, decoded, in_parts, moved, per_picture, runs_of, shortened, uncut_places

PARTS, KEPT, UNCUT = "flowcut_parts", "flowcut_kept", "flowcut_uncut"
"""Fields of a picture beside vLLM's: how many runs of placeholders stand for it, and how many placeholders, cut and
uncut."""


class CutProcessingInfo(MultiModalProcessingInfo):
    """Counts what is left of a picture."""

    @cached_property
    def method(self) -> Method:
        """What the engine cuts with."""
        return method_for(self.get_hf_config(), self.ctx.model_config.model)

    @cached_property
    def skeleton(self) -> Any:
        """The model without its weights, by which tokens are counted."""
        # In the engine's own process vLLM has made classes of transformers its own, which ask for its config.
        with set_current_vllm_config(VllmConfig(model_config=self.ctx.model_config)):
            return skeleton_of(copy.deepcopy(self.get_hf_config()))

    @cached_property
    def count(self) -> Any:
        """Tokens left of a picture of (height, width)."""

        @lru_cache(maxsize=1024)
        def counted(height: int, width: int) -> int:
            return tokens_for(self.skeleton, self.method, (height, width), self.get_hf_processor())

        return counted

    def _get_num_image_tokens(self, size: ImageSize) -> int:
        return int(self.count(size.height, size.width))

    def get_image_size_with_most_features(self) -> ImageSize:
        # The encoder's memory is that of the largest uncut picture, however few of its tokens go on.
        return self._get_size_with_most_tokens(
            self._get_size_candidates(self.get_hf_processor().image_processor, (1,)),
            super()._get_num_image_tokens,
        )


class CutProcessor(MultiModalProcessor):
    """Gives a picture as many placeholders as are left of it."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> Any:
        inputs = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        ids, sizes = inputs.get("image_replacement_ids"), inputs.get("image_replacement_sizes")
        if ids is None:
            return inputs
        images = mm_items.get_items("image", ImageProcessorItems)
        short: list[list[int]] = []
        fields: dict[str, list[int]] = {PARTS: [], KEPT: [], UNCUT: []}
        for place, own in enumerate(torch.split(ids, sizes.tolist())):
            size = images.get_image_size(place)
            # The placeholder is what an expansion repeats most.
            token, stands = int(own.mode().values), own.tolist()
            kept = self.info.count(size.height, size.width)
            short.append(shortened(stands, token, kept))
            for name, number in ((PARTS, len(runs_of(stands, token))), (KEPT, kept), (UNCUT, stands.count(token))):
                fields[name].append(number)
        inputs["image_replacement_ids"] = torch.tensor([one for own in short for one in own])
        inputs["image_replacement_sizes"] = torch.tensor([len(own) for own in short])
        inputs.update({name: torch.tensor(numbers) for name, numbers in fields.items()})
        return inputs

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        own = [name for name in (PARTS, KEPT, UNCUT) if name in hf_inputs]
        rest = BatchFeature({name: value for name, value in hf_inputs.items() if name not in own})
        fields = dict(super()._get_mm_fields_config(rest, hf_processor_mm_kwargs))
        hf_inputs.pop("attention_mask", None)
        return fields | {name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in own}

    def _get_mm_hashes(self, inputs: Any) -> Any:
        # A cache that engines share must not hand one the tokens of another's method.
        return inputs.get_mm_hashes(
            f"{self.info.model_id} {identity_of(self.info.method)}",
            self.info.ctx.get_mm_config().mm_hasher_algorithm,
        )


@MULTIMODAL_REGISTRY.register_processor(CutProcessor, info=CutProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder)
class FlowCutForConditionalGeneration(TransformersMultiModalForCausalLM):
    """Any model of vLLM's Transformers backend that flowcut knows, with a method on its vision encoder."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        method = method_for(self.config, self.model_config.model)
        _, parts = find_parts(self.model)
        self.grid = parts.grid_positions
        self.placeholder = parts.placeholders["image"]
        self.original = self.grid or method.positions == "original"
        if self.original and not self.model_config.uses_mrope:
            raise UnsupportedModelError(
                f"{method.name} with positions=original lets tokens keep their positions, and vLLM asks "
                f"{type(self.model).__name__} for none. Start it with `flowcut serve`, add "
                f"{json.dumps(ASK_FOR_POSITIONS)} to --hf-overrides, or use positions=compact."
            )
        self.arriving: tuple[Tensor, Tensor] | None = None
        self.levels = 0 if parts.tower.packing is None else len(parts.tower.packing.deepstack)
        self.deep: tuple[Tensor, list[Tensor]] | None = None
        if self.levels:
            if self.compilation_config.mode not in (None, CompilationMode.NONE):
                raise UnsupportedModelError(
                    f"{type(self.model).__name__} reads features of the middle of its tower (DeepStack), which vLLM's "
                    "Transformers backend leaves out; the plug-in hands them on where the model is not compiled: start "
                    "it with --enforce-eager."
                )
            # A hook would not do: vLLM calls its forward by itself.
            Override(parts.language_model, "forward", self._inject)
        self.encoder = attach_encoder(self.model, method)

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        self.arriving = self.deep = None
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            assert is_multimodal is not None
            width = self.text_config.hidden_size
            more = torch.cat([tokens[:, width:] for tokens in multimodal_embeddings])
            is_multimodal = is_multimodal.to(more.device)
            if self.original:
                self.arriving = (is_multimodal, decoded(more[:, -CHANNELS:]))
            if self.levels:
                self.deep = (is_multimodal, list(more[:, : width * self.levels].chunk(self.levels, dim=1)))
            multimodal_embeddings = [tokens[:, :width] for tokens in multimodal_embeddings]
        embeddings: Tensor = super().embed_input_ids(
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal, **kwargs
        )
        return embeddings

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.arriving is not None:
            # vLLM was given positions before it was known which tokens stay.
            positions = moved(positions, *self.arriving)
            self.arriving = None
        if self.model_config.uses_mrope and not self.grid:
            # The three are equal, and the model numbers its tokens by one.
            return Base.forward(self, input_ids, positions[0], *args, **kwargs)
        return super().forward(input_ids, positions, *args, **kwargs)

    def _inject(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """The language model's forward, with features of the middle of the tower for the tokens of this step."""
        deep, self.deep = self.deep, None
        if deep is not None:
            is_visual, features = deep
            missing = kwargs["inputs_embeds"].shape[1] - len(is_visual)
            kwargs["visual_pos_masks"] = torch.nn.functional.pad(is_visual, (0, missing))[None]
            kwargs["deepstack_visual_embeds"] = features
        return original(*args, **kwargs)

    def _get_features(self, modality: str, pixel_values: Tensor, **kwargs: Any) -> Any:
        if not self.levels:
            return super()._get_features(modality, pixel_values, **kwargs)
        kwargs = {name: one.to(pixel_values.device) if isinstance(one, Tensor) else one for name, one in kwargs.items()}
        with gpu_sync_allowed():
            output = self.model.get_image_features(pixel_values, return_dict=True, **kwargs)
        levels = zip(*output.deepstack_features, strict=True)
        return [torch.cat([tokens, *own], dim=1) for tokens, own in zip(output.pooler_output, levels, strict=True)]

    def _process_vision_input(
        self, modality: str, pixel_values: Any, num_patches: Tensor, **kwargs: Any
    ) -> list[Tensor]:
        if modality != "image":
            raise FlowCutError("flowcut's plug-in cuts pictures; videos are not served with it yet.")
        rows = num_patches.flatten().tolist()
        parts = kwargs.pop(PARTS).flatten().tolist()
        del kwargs[KEPT], kwargs[UNCUT]
        if isinstance(pixel_values, Tensor):
            return self._encoded(pixel_values, rows, parts, kwargs)
        pictures: list[Tensor] = []
        for number, pixels in enumerate(pixel_values):
            one = slice(number, number + 1)
            own = self._select_item_kwargs(kwargs, number, len(pixel_values))
            pictures += self._encoded(pixels.unsqueeze(0), rows[one], parts[one], own)
        return pictures

    def _encoded(
        self, pixels: Tensor, rows: Sequence[int], parts: Sequence[int], kwargs: dict[str, Any]
    ) -> list[Tensor]:
        """The kept tokens of every picture, ``[K, width]``, with their places behind the features if they matter.

        Args:
            pixels: as the processor made them.
            rows: tiles (or patches) of every picture.
            parts: runs of placeholders of every picture.
            kwargs: what else the encoder takes.
        """
        entries = list(self._get_features("image", pixels, **kwargs))
        if self.original:
            places = [places_of_tokens(image, self.grid) for image in self.encoder.images]
            if len(entries) != len(parts):
                places = in_parts(places, [len(image.placeholder_kept) for image in self.encoder.images], rows, parts)
            entries = [
                torch.cat([tokens, coded(where).to(tokens)], dim=1)
                for tokens, where in zip(entries, places, strict=True)
            ]
        return per_picture(entries, rows)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> tuple[Tensor, int]:
        known = MultiModalFeatureSpec.gather_kwargs(mm_features, {PARTS, KEPT, UNCUT, "image_grid_thw"})
        parts = [int(runs) for runs in known.get(PARTS, [])]
        kept, uncut = (
            [int(count) // runs for count, runs in zip(known.get(name, []), parts, strict=True) for _ in range(runs)]
            for name in (KEPT, UNCUT)
        )
        whole, places = uncut_places(input_tokens, self.placeholder, kept, uncut)
        if not self.grid:
            return torch.tensor([places] * 3), len(whole) - len(input_tokens)
        asked: dict[str, Any] = {"input_ids": torch.tensor([whole])}
        asked["mm_token_type_ids"] = (asked["input_ids"] == self.placeholder).int()
        if kept:
            asked["image_grid_thw"] = torch.stack([grid.flatten() for grid in known["image_grid_thw"]])
        positions, delta = self.model.get_rope_index(**asked)
        # What is added to a token's number in the cut prompt to have its position.
        return positions[:, 0][:, places], int(delta[0]) + len(whole) - len(input_tokens)


def places_of_tokens(image: ImageTrace, grid: bool) -> Tensor:
    """Where every kept token of an image stands in it, ``[K, 3]``: (time, row, column), or three times its number."""
    kept = image.placeholder_kept.nonzero()
    if not grid:
        return kept.expand(-1, 3)
    height, width = image.grid[-2:]
    return torch.cat([kept // (height * width), kept // width % height, kept % width], dim=1)
