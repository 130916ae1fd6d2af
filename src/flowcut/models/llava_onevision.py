"""LLaVA-OneVision: a SigLIP tower without CLS, any-resolution tiles with a size limit of their own."""

from __future__ import annotations

from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionModel
from transformers.models.llava_onevision.modeling_llava_onevision import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

from .base import MODALITY, SEPARATOR, FeatureChoice, ImageLayout, ModelParts
from .llava import Llava


class LlavaOnevision(Llava):
    """Images, one or several per prompt, and videos.

    The budget of an image is shared out over its tiles in equal parts, as far as they have patches outside the padding,
    which the model itself leaves out; ``image_newline`` follows the method's field.

    Of a very large picture the model scales the features of all tiles down together, so that a token lies between four
    patches; the frames of a video are pooled behind the tower, 27 x 27 patches to 14 x 14 tokens, some of them from
    patches they share with a neighbour. No set of patches can then leave the tower without changing tokens that stay.
    The tower therefore runs whole; its layers are scored as ever, and the cut is made among the tokens behind it, whose
    importance is that of their patches, averaged with the same weights. It saves the prefill, not the tower.
    """

    name: ClassVar[str] = "llava_onevision"
    class_name: ClassVar[str] = "LlavaOnevisionForConditionalGeneration"
    hub_ids: ClassVar[tuple[str, ...]] = (
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    )
    videos: ClassVar[bool] = True

    def is_base(self, module: nn.Module) -> bool:
        return isinstance(module, LlavaOnevisionModel)

    def parts(self, base: nn.Module, top: nn.Module) -> ModelParts:
        parts = super().parts(base, top)
        config: Any = base.config
        placeholders = {"image": config.image_token_id, "video": config.video_token_id}
        return ModelParts(**{**vars(parts), "placeholders": placeholders, "packer": "pack_image_features"})

    def layouts(
        self, parts: ModelParts, choice: FeatureChoice, images: int, grid: tuple[int, int], options: dict[str, Any]
    ) -> list[ImageLayout]:
        if options.get(MODALITY) == "video":
            return self.video_layouts(parts, images, grid, options)
        model: Any = parts.base
        sizes: Tensor = options["image_sizes"]
        aspect = options.get("vision_aspect_ratio") or model.config.vision_aspect_ratio
        patches = grid[0] * grid[1]
        numbers = [
            torch.arange(tiles * patches, dtype=torch.float64).reshape(tiles, patches, 1)
            for tiles in tiles_of_images(model.config, sizes, options.get("batch_num_images"))
        ]
        # The model's own packing, applied to patch numbers instead of features, tells what every token is.
        packed, _ = type(model).pack_image_features(
            model,
            numbers,
            sizes,
            image_newline=torch.full((1,), float(SEPARATOR), dtype=torch.float64),
            vision_aspect_ratio=aspect,
        )
        return [
            self.shrunk_layout(model, size, grid, aspect)
            if bool((tokens != tokens.round()).any())
            else ImageLayout(len(number), (len(number), *grid), tokens.squeeze(-1).long(), complete=False)
            for size, number, tokens in zip(sizes, numbers, packed, strict=True)
        ]

    @staticmethod
    def shrunk_layout(model: Any, size: Tensor, grid: tuple[int, int], aspect: str) -> ImageLayout:
        """The layout of an image that is larger than ``aspect`` allows, whose tiles the model scales down together.

        Args:
            model: the base module.
            size: (height, width) of the image in pixels.
            grid: patches of one tile, (height, width).
            aspect: the model's ``vision_aspect_ratio``.
        """
        config, (height, width) = model.config, grid
        shape_of: Any = get_anyres_image_grid_shape
        rows, columns = shape_of(size, config.image_grid_pinpoints, config.vision_config.image_size)
        line, column = torch.meshgrid(torch.arange(rows * height), torch.arange(columns * width), indexing="ij")
        tile = 1 + line // height * columns + column // width
        numbers = tile * height * width + line % height * width + column % width
        # The model's own packing, applied to the patches' places in the picture, tells between which of them a token
        # lies, since interpolation is linear. The overview's patches have their number in the place of a line.
        places = torch.zeros((1 + rows * columns) * height * width, 3, dtype=torch.float64)
        overview = torch.arange(height * width)
        places[overview, 0] = overview.double()
        places[numbers.flatten()] = torch.stack([line, column, torch.ones_like(line)], dim=-1).reshape(-1, 3).double()
        packed, _ = type(model).pack_image_features(
            model,
            [places.reshape(1 + rows * columns, height * width, 3)],
            size[None],
            image_newline=torch.full((3,), float(SEPARATOR), dtype=torch.float64),
            vision_aspect_ratio=aspect,
        )
        lines, kind = packed[0][:, 0], packed[0][:, 2]
        patches, weights = corners(numbers, lines, packed[0][:, 1])
        in_overview = kind == 0
        patches[in_overview] = lines[in_overview].long()[:, None]
        tokens = patches.gather(1, weights.argmax(dim=1, keepdim=True))[:, 0].masked_fill(kind == SEPARATOR, SEPARATOR)
        blocked = (
            f"An image of {int(size[0])} x {int(size[1])} pixels is larger than vision_aspect_ratio={aspect!r} allows: "
            "the model scales its features down behind the tower, so that a visual token lies between patches, and "
            "this method can only cut patches. Use one that ranks interpolated tokens, such as FlowCut, or that cuts "
            "behind the tower, give a smaller image, or give a budget that covers all of its "
            f"{len(tokens)} visual tokens."
        )
        grids = (1 + rows * columns, height, width)
        return ImageLayout(grids[0], grids, tokens, False, blend=(patches, weights.float()), blocked=blocked)

    @staticmethod
    def video_layouts(
        parts: ModelParts, images: int, grid: tuple[int, int], options: dict[str, Any]
    ) -> list[ImageLayout]:
        """Layouts of videos, whose frames are pooled and end with one separator for the whole video."""
        model: Any = parts.base
        frames = options["pixel_values_videos"].shape[1]
        # The model's own pooling of patches that are each 1 in a channel of their own gives their weights.
        weights = type(model).apply_pooling(model, torch.eye(grid[0] * grid[1])[None])[0]
        height, width = (ceil(side / 2) for side in grid)
        tokens = torch.cat([torch.arange(frames * len(weights)), torch.tensor([SEPARATOR])])
        blocked = (
            f"{type(model).__name__} pools the frames of a video by interpolation behind the tower, so that no visual "
            "token belongs to one patch, and this method can only cut patches. Use one that ranks pooled tokens, such "
            f"as FlowCut, give the frames as images, or give a budget for all {len(tokens)} visual tokens."
        )
        layout = ImageLayout(frames, (frames, height, width), tokens, False, pooled=weights, blocked=blocked)
        return [layout] * (images // frames)


def corners(numbers: Tensor, lines: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The four entries of a grid around places between them, and their weights in bilinear interpolation.

    Args:
        numbers: int64 ``[height, width]``, the entries.
        lines, columns: float ``[N]``, the places; those outside count as on the edge.

    Returns:
        int64 ``[N, 4]`` and float ``[N, 4]``; each row of the latter sums to 1.
    """
    bottom, end = (side - 1 for side in numbers.shape)
    lines, columns = lines.clamp(0, bottom), columns.clamp(0, end)
    above, left = lines.long(), columns.long()
    down, across = lines - above, columns - left
    around = [(row, column) for row in (above, above + 1) for column in (left, left + 1)]
    entries = torch.stack([numbers[row.clamp(max=bottom), column.clamp(max=end)] for row, column in around], dim=1)
    weights = torch.stack([one * other for one in (1 - down, down) for other in (1 - across, across)], dim=1)
    return entries, weights


def tiles_of_images(config: Any, sizes: Tensor, images_per_sample: Any) -> list[int]:
    """Tiles of every image; images that share a prompt with others have one."""
    tiled = [True] * len(sizes)
    if images_per_sample is not None:
        tiled = [count == 1 for count in torch.as_tensor(images_per_sample).tolist() for _ in range(count)]
    return [
        image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size) if many else 1
        for size, many in zip(sizes, tiled, strict=True)
    ]
