"""Where a model family keeps its parts. Model files know nothing of methods or of the cutting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Packing:
    """How a tower takes images of any size: the patches of all of them in one sequence ``[patches, width]``.

    Attributes:
        merger: joins patches that follow one another into visual tokens, behind the last layer.
        group: how many patches it joins into one.
        encoders: the base's methods that run the tower, by modality.
        order: given the grids ``[images, 3]`` and the tower's keyword arguments, the group at every place of the
            sequence, int64 ``[groups]``; ``None`` where the tower leaves them in order.
        width: size of a patch's hidden state.
        values: numbers in one raw patch.
        deepstack: mergers of states from the middle of the tower, where the language model reads those too.
        read: given the tower's positional and keyword arguments, the grids ``[images, 3]``, and the pixels of every
            image; by default it is called with patches and ``grid_thw``.
        restores: whether patches are joined by the model's own code behind the layers, out of the whole sequence: it
            then sees what is left at its uncut place, among zeros. ``merger`` is not watched.
        arrange: given the grids, the patch at every place of the sequence, int64 ``[patches]``, that brings the patches
            of each group together; ``None`` where they are.
        rows: for a tower that takes images as rows of a batch, filled up to one length: given its positional and
            keyword arguments, int64 ``[patches]``, where the patches of every image stand in the rows laid end to end.
        flops_in_front: for a tower of which only the last layers are cut: given how many patches of an image these
            see, what it costs in front of them.
    """

    merger: nn.Module
    group: int
    encoders: dict[str, str]
    order: Callable[[Tensor, dict[str, Any]], Tensor | None]
    width: int
    values: int
    deepstack: tuple[nn.Module, ...] = ()
    read: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Tensor, Sequence[Tensor]]] | None = None
    restores: bool = False
    arrange: Callable[[Tensor], Tensor | None] | None = None
    rows: Callable[[tuple[Any, ...], dict[str, Any]], Tensor] | None = None
    flops_in_front: Callable[[int], int] | None = None


@dataclass(frozen=True)
class VisionTower:
    """A vision encoder.

    Attributes:
        module: called with ``pixel_values``; returns an output with ``hidden_states``.
        layers: its transformer layers, in order.
        attentions: the attention module of each layer (it looks up its implementation in its ``config``).
        projections: the output projection of each layer's attention.
        mlps: the MLP of each layer. Like the projections, called with ``[B, S, width]``, it works on each token by
            itself.
        prefix: leading tokens that are not patches, CLS first; 0 where there is no CLS.
        patch_size: pixels along one side of a patch.
        keywords: whether it hands keyword arguments of its call on to its layers.
        pooler: what condenses its last states to one vector, where it does, whether or not the model reads that.
        packing: for a tower without a batch dimension, how it packs its images.
    """

    module: nn.Module
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    projections: tuple[nn.Module, ...]
    mlps: tuple[nn.Module, ...]
    prefix: int
    patch_size: int
    keywords: bool = True
    pooler: nn.Module | None = None
    packing: Packing | None = None

    @property
    def config(self) -> Any:
        """The tower's config."""
        return self.module.config


@dataclass(frozen=True)
class ModelParts:
    """One model, taken apart.

    Attributes:
        family: the name of its family.
        top: the module with ``generate`` and the loss; the same as ``base`` for a model without a head.
        base: the module whose ``forward`` joins image features and text (``LlavaModel`` and the like).
        tower: the vision tower of images, and of every modality without a tower of its own.
        projector: maps tower features into the language model.
        projector_flops: what one visual token costs behind the tower, where the projector's modules do not tell.
        language_model: the decoder, without its head.
        decoder_layers: the decoder's layers, in order.
        placeholders: token id that stands for one visual token in ``input_ids``, by modality (``"image"``).
        second_cut: whether FlowCut's paper cuts this family a second time, inside the language model.
        packer: the base's method that joins the projected tiles of an image, where there is one.
        own_towers: the towers of other modalities, by modality (``"video"``).
        group: patches of the tower that are joined into one visual token.
        shuffle: where they are joined by moving them into channels: a module and the name of its method.
        grid_positions: whether the language model's positions are (time, height, width), ``[3, B, L]``. Every kept
            token then keeps its own, whatever the method's ``positions`` says: the model reads them as places in
            the picture.
        injection: the language model's method that adds the tower's intermediate features to the hidden states behind
            one of its layers, called with those states, a mask of the visual tokens, and the features.
        tokens_per_image: visual tokens of every image, where the model hands out those of several images in one and the
            tower stays whole; 0 where an entry is an image.
        first_position: the position of a prompt's first token.
        refusals: the stages at which nothing can be cut, ``"tower"``, ``"projector"`` or ``"decoder"``, and why: the
            end of a sentence that begins with the model's name.
    """

    family: str
    top: nn.Module
    base: nn.Module
    tower: VisionTower
    projector: nn.Module
    language_model: nn.Module
    decoder_layers: tuple[nn.Module, ...]
    placeholders: dict[str, int]
    second_cut: bool = False
    packer: str | None = None
    own_towers: dict[str, VisionTower] = field(default_factory=dict)
    group: int = 1
    shuffle: tuple[nn.Module, str] | None = None
    grid_positions: bool = False
    injection: str | None = None
    tokens_per_image: int = 0
    projector_flops: int | None = None
    first_position: int = 0
    refusals: dict[str, str] = field(default_factory=dict)

    def tower_of(self, modality: str) -> VisionTower:
        """The tower that encodes ``modality``."""
        return self.own_towers.get(modality, self.tower)

    @property
    def towers(self) -> tuple[VisionTower, ...]:
        """All vision towers, that of images first."""
        return (self.tower, *self.own_towers.values())


MODALITY = "modality"
"""Among the options of a call: what it encodes, ``"image"`` or ``"video"``."""

PREFIX = -1
"""In a layout: a prefix token of the tower (CLS, registers); it always stays."""

SEPARATOR = -2
"""In a layout: a token that is no part of the picture, such as LLaVA-NeXT's ``image_newline``."""


@dataclass(frozen=True)
class ImageLayout:
    """How one image (or video) becomes visual tokens.

    Attributes:
        tiles: rows of the tower's batch that belong to the image: its tiles, or the frames of a video.
        grid: (height, width) of its patches, or (tiles, height, width).
        tokens: int64 ``[visual tokens]``: the patch behind every visual token of the prompt, counted over all
            tiles, or :data:`PREFIX` or :data:`SEPARATOR`.
        complete: whether every patch stands behind exactly one token and there are no separators.
        order: where patches are joined in groups, int64 ``[groups, patches in each]``: the patches of every group;
            ``grid`` and ``tokens`` then count groups.
        pooled: where patches are pooled by interpolation behind the tower, float ``[tokens of a tile, patches]``: the
            weight of every patch in every token. The tower then stays whole and the pooled tokens are cut; ``grid`` and
            ``tokens`` count those.
        blend: where the tokens of the whole image are interpolated from patches of several tiles: int64 ``[visual
            tokens, 4]``, the patches in every token, and float ``[visual tokens, 4]``, their weights. The tower then
            stays whole and tokens are cut behind it; ``tokens`` names the nearest patch of each.
        spread: whether the projector sees what is left of a picture at its uncut place, among zeros; it then works on
            all of its tokens, and those that were cut are left out behind it.
        blocked: why patches cannot be cut in the tower, where that is so, else empty.
        plain: whether the tokens are the patches of one tile in their order, behind the prefix tokens.
        handed_out: what one entry of the features is that ``get_image_features`` and its like hand out: all of an image
            (or video), a row of the tower's batch, or all images of a sample.
    """

    tiles: int
    grid: tuple[int, ...]
    tokens: Tensor
    complete: bool
    order: Tensor | None = None
    pooled: Tensor | None = None
    blend: tuple[Tensor, Tensor] | None = None
    spread: bool = False
    blocked: str = ""
    plain: bool = False
    handed_out: Literal["image", "row", "sample"] = "image"


@dataclass(frozen=True)
class FeatureChoice:
    """Which of the tower's tokens and layers the model reads.

    Attributes:
        layers: positive indices into ``hidden_states`` (0 is the embedding output).
        visible_prefix: how many of the tower's prefix tokens go on to the language model.
    """

    layers: tuple[int, ...]
    visible_prefix: int


class ModelFamily(ABC):
    """A model family: recognises its base class and knows its parts."""

    name: ClassVar[str]
    class_name: ClassVar[str]
    hub_ids: ClassVar[Sequence[str]]
    towers: ClassVar[Sequence[str]]
    videos: ClassVar[bool] = False

    @abstractmethod
    def is_base(self, module: nn.Module) -> bool:
        """Whether ``module`` is the family's base module."""

    @abstractmethod
    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        """Take the model apart.

        Raises:
            UnsupportedModelError: a part (such as the vision tower) is of an unknown kind.
        """

    @abstractmethod
    def feature_choice(self, parts: ModelParts, options: dict[str, Any]) -> FeatureChoice:
        """What the model reads from its tower, given the keyword arguments of this call.

        ``options`` also says under :data:`MODALITY` what the call encodes; without it, images.

        Raises:
            UnsupportedModelError: the choice leaves the method no room, or contradicts the tower.
        """

    def layouts(
        self, parts: ModelParts, choice: FeatureChoice, images: int, grid: tuple[int, int], options: dict[str, Any]
    ) -> list[ImageLayout]:
        """How the images of one call become visual tokens; by default each is one grid behind the prefix tokens.

        Args:
            images: rows of the tower's batch.
            grid: patches of one row, (height, width).
            options: arguments of the call, and under :data:`MODALITY` what it encodes.
        """
        return [plain_layout(choice.visible_prefix, grid)] * images


@cache
def plain_layout(prefix: int, grid: tuple[int, int]) -> ImageLayout:
    """One grid, row by row, behind prefix tokens."""
    tokens = torch.cat([torch.full((prefix,), PREFIX), torch.arange(grid[0] * grid[1])])
    return ImageLayout(1, grid, tokens, complete=True, plain=True)
