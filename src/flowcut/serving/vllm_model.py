"""The plug-in's model for vLLM: its Transformers backend, with the vision encoder cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import CompilationMode
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.transformers import MultiModalDummyInputsBuilder, TransformersMultiModalForCausalLM
from vllm.model_executor.models.transformers.base import Base
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from ..attaching import attach_encoder
from ..errors import UnsupportedModelError
from ..models import ModelParts, find_parts
from ..models.general import masked_by_types
from ..stages.observing.overrides import Override
from ..trace import ImageTrace
from .choice import ASK_FOR_POSITIONS, method_for
from .placeholders import CHANNELS, coded, decoded, in_parts, moved, per_picture, uncut_places
from .vllm_pictures import KEPT, PARTS, UNCUT, CutProcessingInfo, CutProcessor


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
        check_attention(self.model, parts, self.model_config)
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


def check_attention(model: Any, parts: ModelParts, model_config: Any) -> None:
    """Refuse a model whose visual tokens see one another where vLLM's attention would hide some of them.

    Raises:
        UnsupportedModelError: the attention is causal throughout; vLLM itself would answer differently without a word.
    """
    if not masked_by_types(parts.base):
        return
    backends = {layer.attn_backend for layer in model.modules() if isinstance(layer, Attention)}
    blind = sorted(backend.get_name() for backend in backends if not backend.supports_mm_prefix())
    if blind or not model_config.is_mm_prefix_lm:
        raise UnsupportedModelError(
            f"{type(model).__name__} lets the visual tokens of a picture see one another, and vLLM's attention here "
            f"({', '.join(blind) or 'any'}) hides from each those behind it, so that answers would differ from "
            "transformers'. On a CPU it cannot be served. On a GPU choose an attention that can, for models that vLLM "
            "knows (Gemma 3, PaliGemma): --attention-backend TRITON_ATTN."
        )


def places_of_tokens(image: ImageTrace, grid: bool) -> Tensor:
    """Where every kept token of an image stands in it, ``[K, 3]``: (time, row, column), or three times its number."""
    kept = image.placeholder_kept.nonzero()
    if not grid:
        return kept.expand(-1, 3)
    height, width = image.grid[-2:]
    return torch.cat([kept // (height * width), kept // width % height, kept % width], dim=1)
