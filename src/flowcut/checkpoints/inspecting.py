"""What flowcut finds in a model, told from its config alone: the model is built without weights, on the meta device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..encoding import skeleton_of
from ..errors import UnsupportedModelError
from ..models import REFUSED, ModelParts, find_parts
from ..models.decoders import sees
from ..models.towers import side
from .loading import read_config
from .mini import MINI, package_folder

SHOWN = (336, 672, 1344)
"""Sides, in pixels, of the square pictures whose tokens are told where a tower takes pictures of any size."""


@dataclass(frozen=True)
class Inspection:
    """What flowcut finds in a model.

    Attributes:
        model_type, class_name: of its config, and the class that loads it.
        family: what knows it, a family's name or the model type itself.
        tower: class of the vision tower, its layers, and how it takes pictures.
        projector: class of what maps its features into the language model.
        decoder: class of the language model, its layers, and which of them attend.
        placeholders: token id of a visual token, by modality.
        positions: how the language model counts positions.
        tokens: visual tokens of a picture, in words.
        cuts: for the tower, the projector and the decoder, ``"yes"`` or why not.
    """

    model_type: str
    class_name: str
    family: str
    tower: str
    projector: str
    decoder: str
    placeholders: dict[str, int]
    positions: str
    tokens: str
    cuts: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def inspect_checkpoint(path_or_id: str) -> Inspection:
    """Inspect a checkpoint by its config; no weights are read.

    Args:
        path_or_id: ``flowcut-mini``, or a folder or a hub id in Hugging Face's format.

    Raises:
        FileNotFoundError: there is no config.
        FlowCutError: flowcut-mini is not installed.
        UnsupportedModelError: nothing can be cut, with the reason.
    """
    return inspect_config(read_config(str(package_folder()) if path_or_id == MINI else path_or_id))


def inspect_config(settings: dict[str, Any]) -> Inspection:
    """Inspect a model by the contents of its ``config.json``; see :func:`inspect_checkpoint`."""
    model_type = str(settings.get("model_type"))
    class_name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type)
    if class_name is None:
        raise UnsupportedModelError(
            f"A model of type {model_type!r} is no image-text-to-text model of the installed transformers. "
            "flowcut models lists those that are."
        )
    if class_name in REFUSED:
        raise UnsupportedModelError(f"{class_name} is not supported: {REFUSED[class_name]}.")
    _, parts = find_parts(skeleton_of(CONFIG_MAPPING[model_type].from_dict(settings)))
    return Inspection(
        model_type=model_type,
        class_name=class_name,
        family=parts.family,
        tower=tower_in_words(parts),
        projector=type(parts.projector).__name__ if "tower" not in parts.refusals else "part of the encoder",
        decoder=decoder_in_words(parts),
        placeholders=parts.placeholders,
        positions="(time, height, width) in the picture" if parts.grid_positions else "one after the other",
        tokens=tokens_in_words(parts),
        cuts={stage: parts.refusals.get(stage, "yes") for stage in ("tower", "projector", "decoder")},
    )


def tower_in_words(parts: ModelParts) -> str:
    """The vision tower."""
    tower = parts.tower
    name = type(tower.module).__name__
    if not tower.layers:
        return f"{name}, not taken apart"
    how = "pictures of any size in one sequence" if tower.packing else "a batch of pictures of one size"
    return f"{name}, {len(tower.layers)} layers, {tower.prefix} leading tokens, {how}"


def decoder_in_words(parts: ModelParts) -> str:
    """The language model."""
    layers = parts.decoder_layers
    attending = sum(sees(layer) for layer in layers)
    rest = "" if attending == len(layers) else f", {attending} of them attend"
    return f"{type(parts.language_model).__name__}, {len(layers)} layers{rest}"


def tokens_in_words(parts: ModelParts) -> str:
    """How many visual tokens a picture has."""
    tower = parts.tower
    config: Any = tower.config
    if not tower.layers:
        return "told by the first picture"
    if tower.packing is not None:
        stride = side(tower.patch_size) * round(tower.packing.group**0.5)
        counts = ", ".join(f"{size} x {size}: {(size // stride) ** 2}" for size in SHOWN)
        return f"one for {stride} x {stride} pixels ({counts})"
    count = (side(config.image_size) // side(config.patch_size)) ** 2 // parts.group
    return f"{count} for each {'tile' if parts.packer else 'picture'} of {side(config.image_size)} pixels"
