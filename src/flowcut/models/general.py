"""Any model that keeps transformers' contract for vision-language models, without a file of its own.

The contract: ``get_image_features`` whose output's ``pooler_output`` has an entry for every image, a placeholder id in
the config, a forward that takes encoded images as ``mm_encoder_outputs``, and a decoder found by ``get_decoder()``. A
vision tower that packs pictures of any size is cut if its kind is known (``packed_towers.py``); any other stays whole,
and nothing is assumed about it. What is not found as the contract says is refused, with the reason; what only a pass
can show (that features and placeholders agree in number) is checked in every pass.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .base import FeatureChoice, ImageLayout, ModelFamily, ModelParts, VisionTower
from .costs import linear_flops
from .decoders import decoder_layers_of, injection_of, why_decoder_stays_whole
from .packed_towers import find_packed_tower
from .readings import READINGS, Reading, layers_read, squared_layout
from .refused import WHOLE
from .towers import LAYOUTS, find_tower

PLACEHOLDERS = ("image_token_id", "image_token_index")
"""Names under which configs hold the placeholder of a visual token."""

PROJECTORS = (
    "multi_modal_projector",
    "mm_projector",
    "aligner",
    "vision_projection",
    "projector",
    "visual_embeddings_table",
    "embed_vision",
    "merger",
)
"""Names of the module that maps a tower's features into the language model."""

MERGES = {
    "Cosmos3EdgeModel": 2,
    "Kimi_K25Model": 2,
    "MiniMaxM3VLModel": 2,
    "PaddleOCRVLModel": 2,
    "VideoLlama3Model": 2,
}
"""Sides of the squares of patches that become one token, of models that join them and do not name it themselves."""

MINICPM = ("MiniCPMV4_6Model", "MiniCPMV4_7Model")

FIRST_POSITIONS = {"PaliGemmaModel": 1}
"""Models that count the positions of a prompt from another number than 0."""

AXES = 3
"""Axes of places in a picture: time, height, width."""

ENCODED = "mm_encoder_outputs"
"""The forward's argument that takes images which are encoded already."""


class General(ModelFamily):
    """Images alone: how frames of a video stand in a prompt differs too much to be told from the contract."""

    name: ClassVar[str] = "general"
    class_name: ClassVar[str] = "any class that keeps transformers' contract"
    hub_ids: ClassVar[tuple[str, ...]] = ()
    towers: ClassVar[tuple[str, ...]] = ()

    def is_base(self, module: nn.Module) -> bool:
        return (
            isinstance(module, PreTrainedModel)
            and encodes(module)
            and ENCODED in inspect.signature(type(module).forward).parameters
            and not any(encodes(child) for child in module.children())
        )

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        check_contract(base, top)
        model: Any = base
        decoder: nn.Module = model.get_decoder()
        encoder: Any = model.get_encoder(modality="image")
        refusals: dict[str, str] = {}
        reading = READINGS.get(type(base).__name__)
        if reading is not None and encoder.config.model_type in LAYOUTS:
            tower, projector = find_tower(encoder.get_submodule(reading.inside)), projector_of(base)
        else:
            tower, projector = find_packed_tower(encoder, merge_of(base)) or (whole_tower(encoder), nn.Identity())
            if tower.packing is not None and tower.packing.restores:
                projector = projector_of(base)
        if not tower.layers:
            unknown = f"has a vision tower ({type(encoder).__name__}) whose inside is not known, and stays whole"
            refusals["tower"] = WHOLE.get(type(base).__name__, unknown)
        reason = why_decoder_stays_whole(decoder) or masked_by_types(base)
        if reason:
            refusals["decoder"] = reason
        return ModelParts(
            family=model.config.model_type,
            top=top,
            base=base,
            tower=tower,
            projector=projector,
            language_model=decoder,
            decoder_layers=decoder_layers_of(decoder),
            placeholders={"image": placeholder_of(base)},
            group=reading.square(model.config) ** 2 if reading else 1,
            grid_positions=hasattr(model, "compute_3d_position_ids"),
            tokens_per_image=tokens_per_image(model),
            projector_flops=projector_flops(model) if tower.layers else None,
            first_position=FIRST_POSITIONS.get(type(base).__name__, 0),
            injection=injection_of(decoder),
            refusals=refusals,
        )

    def feature_choice(self, parts: ModelParts, options: dict[str, Any]) -> FeatureChoice:
        reading = READINGS.get(type(parts.base).__name__, Reading())
        config: Any = parts.base.config
        layers: Any = len(parts.tower.layers)
        if reading.layers:
            given = options.get(reading.layers)
            layers = layers_read(parts.tower, getattr(config, reading.layers) if given is None else given)
            return FeatureChoice(layers, self.visible_prefix(parts, reading, options))
        return FeatureChoice((layers,), self.visible_prefix(parts, reading, options))

    @staticmethod
    def visible_prefix(parts: ModelParts, reading: Reading, options: dict[str, Any]) -> int:
        """How many of the tower's leading tokens go on to the language model.

        Raises:
            UnsupportedModelError: more are dropped than there are, so that a patch would be.
        """
        config: Any = parts.base.config
        dropped = reading.dropped
        if reading.strategy and (options.get(reading.strategy) or getattr(config, reading.strategy)) == "default":
            dropped = 1
        if dropped > parts.tower.prefix:
            raise UnsupportedModelError(
                f"{type(parts.base).__name__} drops the first token of its tower, but "
                f"{type(parts.tower.module).__name__} has no CLS token there: that would be a patch. Set "
                f"{reading.strategy or 'another tower'} to 'full'."
            )
        return parts.tower.prefix - dropped

    def layouts(
        self, parts: ModelParts, choice: FeatureChoice, images: int, grid: tuple[int, int], options: dict[str, Any]
    ) -> list[ImageLayout]:
        square = math.isqrt(parts.group)
        if square == 1:
            return super().layouts(parts, choice, images, grid, options)
        return [squared_layout(grid, square)] * images


def merge_of(base: Any) -> int:
    """Side of the squares of patches that become one token, where they are joined outside the tower."""
    kind = type(base).__name__
    if kind == "Gemma4Model":
        return int(base.config.vision_config.pooling_kernel_size)
    if kind == "Lfm2VlModel":
        return int(base.config.downsample_factor)
    if kind in MINICPM:
        return int(base.config.merge_kernel_size[0] ** base.config.merger_times)
    return MERGES.get(kind) or int(getattr(base.config, "spatial_merge_size", 1))


def projector_of(base: nn.Module) -> nn.Module:
    """What maps a tower's features into the language model; nothing where its name is not known."""
    model: Any = base
    return next((getattr(model, name) for name in PROJECTORS if hasattr(model, name)), nn.Identity())


def masked_by_types(base: nn.Module) -> str:
    """Why nothing can be cut inside the decoder of a model that builds its masks by the types of tokens."""
    arguments = inspect.signature(type(base).forward).parameters
    names = ["token_type_ids"] + ([] if hasattr(base, "compute_3d_position_ids") else ["mm_token_type_ids"])
    given = [name for name in names if name in arguments]
    if not given:
        return ""
    return f"lets visual tokens see one another by {given[0]}, and its mask is not known behind a cut"


def tokens_per_image(base: Any) -> int:
    """Visual tokens of every image of a model that hands out those of a sample in one; 0 for others."""
    return int(base.config.perceiver_config.resampler_n_latents) if type(base).__name__ == "Idefics2Model" else 0


def projector_flops(base: Any) -> int | None:
    """What a visual token costs behind the tower, of models whose projectors are no plain maps of visual tokens."""
    kind = type(base).__name__
    if kind == "MiniMaxM3VLModel":
        # It maps single patches, then squares of them.
        projector = base.multi_modal_projector
        single = linear_flops(projector.linear_1) + linear_flops(projector.linear_2)
        joined = linear_flops(projector.merge_linear_1) + linear_flops(projector.merge_linear_2)
        return int(projector.spatial_merge_size) ** 2 * single + joined
    if kind == "Ovis2Model":
        # A visual token is a weighted sum over a table of visual words, and not a row that is looked up.
        table: int = base.visual_embeddings_table.weight.numel()
        return linear_flops(base.vision_tower.head_linear) + 2 * table
    if kind in MINICPM:
        # Squares are joined several times, each time four to one.
        last = len(base.merger.mlp) - 1
        counts: list[int] = [4 ** (last - number) * linear_flops(one) for number, one in enumerate(base.merger.mlp)]
        return sum(counts)
    return None


def axes_of(decoder: nn.Module) -> int:
    """Along how many axes a decoder counts positions; 0 where they are counted one after the other."""
    config: Any = decoder.config
    given = getattr(config, "rope_parameters", None) or {}
    inner = [given, *(value for value in given.values() if isinstance(value, dict))]
    return max(len(one.get("mrope_section") or ()) for one in inner)


def encodes(module: nn.Module) -> bool:
    """Whether a module's class gives image features."""
    return hasattr(type(module), "get_image_features")


def whole_tower(module: nn.Module) -> VisionTower:
    """A vision tower of which nothing is known, and nothing is cut."""
    return VisionTower(module=module, layers=(), attentions=(), projections=(), mlps=(), prefix=0, patch_size=1)


def placeholder_of(base: nn.Module) -> int:
    """The token id that stands for a visual token of an image.

    Raises:
        UnsupportedModelError: the config names none.
    """
    config: Any = base.config
    found = (getattr(config, name, None) for name in PLACEHOLDERS)
    token = next((token for token in found if isinstance(token, int)), None)
    if token is None:
        raise UnsupportedModelError(
            f"{type(base).__name__} has no placeholder for a visual token in its config (looked for "
            f"{' and '.join(PLACEHOLDERS)}), so that cut tokens cannot be found in a prompt."
        )
    return token


def check_contract(base: nn.Module, top: nn.Module) -> None:
    """Make sure that what the contract promises is there.

    Raises:
        UnsupportedModelError: names what is not.
    """
    config: Any = base.config
    model: Any = base
    reason = ""
    if getattr(config, "is_encoder_decoder", False):
        reason = "is an encoder-decoder: visual tokens are in its encoder, not in the prompt of a decoder"
    elif top is base and model.get_output_embeddings() is not None:
        reason = "has its head inside the module that joins images and text, which is not supported without a file"
    elif not isinstance(getattr(model.get_decoder(), "layers", None), nn.ModuleList):
        reason = f"has a decoder ({type(model.get_decoder()).__name__}) without a list of layers"
    elif axes_of(model.get_decoder()) not in (0, AXES):
        reason = f"counts positions along {axes_of(model.get_decoder())} axes, of which only {AXES} are known"
    elif model.get_input_embeddings() is None:
        reason = "has no input embedding, by which placeholders are recognised"
    if reason:
        raise UnsupportedModelError(f"{type(base).__name__} {reason}. docs/families.md lists what is supported.")
