"""The plug-in's part in front of vLLM's engine: pictures, the placeholders that stand for them, and their identity."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property, lru_cache
from types import MethodType, SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import BatchFeature, Idefics3Processor
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.models.transformers import MultiModalProcessingInfo, MultiModalProcessor
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems, ImageSize

from ..encoding import skeleton_of, tokens_for
from ..errors import UnsupportedModelError
from ..methods import Method
from ..methods.naming import describe
from .choice import identity_of, method_for
from .placeholders import runs_of, shortened

logger = init_logger(f"vllm.{__name__}")  # below vLLM's own, whose handler prints it

ASKED = "_get_num_multimodal_tokens"
"""What vLLM calls a processor's method that counts."""

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
    def identity(self) -> str:
        """What it does to a picture, in vLLM's caches."""
        return identity_of(self.method)

    @cached_property
    def skeleton(self) -> Any:
        """The model without its weights, by which tokens are counted."""
        # In the engine's own process vLLM has made classes of transformers its own, which ask for its config.
        with set_current_vllm_config(VllmConfig(model_config=self.ctx.model_config)):
            return skeleton_of(copy.deepcopy(self.get_hf_config()))

    def get_hf_processor(self, **kwargs: object) -> Any:
        """The model's; it must say how many tokens a picture of some size has."""
        processor = super().get_hf_processor(**kwargs)
        if hasattr(processor, ASKED):
            return processor
        if type(processor).__name__ != "SmolVLMProcessor":
            raise UnsupportedModelError(
                f"{type(processor).__name__} cannot say how many tokens a picture has before it is read ({ASKED}), "
                f"which vLLM asks it for. See whether transformers newer than {transformers.__version__} can."
            )
        # It tiles pictures as Idefics3 does, and lacks what that says about them.
        setattr(processor, ASKED, MethodType(Idefics3Processor._get_num_multimodal_tokens, processor))
        return processor

    @cached_property
    def count(self) -> Any:
        """Tokens left of a picture of (height, width), of which its processor made so many tokens and tiles."""

        @lru_cache(maxsize=1024)
        def counted(height: int, width: int, tokens: int, tiles: int) -> int:
            numbers = {"num_image_tokens": [tokens], "num_image_patches": [tiles]}
            made = SimpleNamespace(_get_num_multimodal_tokens=lambda image_sizes: numbers)
            return tokens_for(self.skeleton, self.method, (height, width), made)

        return counted

    def _get_supported_modalities(self) -> list[str]:
        # Videos are not cut yet: vLLM turns a request with one away in front of the engine, which an error would end.
        return ["image"]

    def _get_num_image_tokens(self, size: ImageSize) -> int:
        made = self._get_num_mm_tokens(image_sizes=([size.height, size.width],))
        tokens, tiles = made["num_image_tokens"][0], made["num_image_patches"][0]
        return int(self.count(size.height, size.width, int(tokens), int(tiles)))

    def get_max_image_tokens(self) -> int:
        size = self.get_image_size_with_most_features()
        kept, uncut = self._get_num_image_tokens(size), super()._get_num_image_tokens(size)
        if kept >= uncut:
            logger.warning_once(
                "%s keeps all %d visual tokens of the largest picture: nothing is cut. Choose a smaller budget.",
                describe(self.method, budget=True),
                uncut,
            )
        return kept

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
        tiles = inputs["num_image_patches"].tolist()
        for place, own in enumerate(torch.split(ids, sizes.tolist())):
            size = images.get_image_size(place)
            # The placeholder is what an expansion repeats most.
            token, stands = int(own.mode().values), own.tolist()
            uncut = stands.count(token)
            # What the processor made of it with a request's own options, not what it makes by default.
            kept = self.info.count(size.height, size.width, uncut, tiles[place])
            short.append(shortened(stands, token, kept))
            for name, number in ((PARTS, len(runs_of(stands, token))), (KEPT, kept), (UNCUT, uncut)):
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
        # A cache that engines share must not hand one the tokens of another's method. Standing among the processor's
        # options, it also counts where a request brings a name of its own for a picture.
        options = {**inputs.hf_processor_mm_kwargs, "flowcut": self.info.identity}
        return super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=options))
