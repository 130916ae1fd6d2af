"""LLaVA-OneVision: a SigLIP tower without CLS, any-resolution tiles with a size limit of their own."""

from __future__ import annotations

from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionModel
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from .base import MODALITY, SEPARATOR, FeatureChoice, ImageLayout, ModelParts
from .llava import Llava


class LlavaOnevision(Llava):
    """Images, one or several per prompt, and videos.

    The budget of an image is shared out over its tiles in equal parts; what then lies in the padding of the tiles
    is left out, as the model itself does, and ``image_newline`` follows the method's field.

    The frames of a video are pooled behind the tower: of 27 x 27 patches the model interpolates 14 x 14 tokens, some
    of them from patches they share with a neighbour, so that no set of patches can leave the tower without changing
    tokens that stay. The tower therefore runs whole; its layers are scored as ever, and the cut is made among the
    pooled tokens, whose importance is that of their patches, averaged with the same weights. It saves the prefill (a
    frame has 196 tokens there), not the tower.
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
        layouts = []
        for size, number, tokens in zip(sizes.tolist(), numbers, packed, strict=True):
            blocked = ""
            if bool((tokens != tokens.round()).any()):
                blocked = (
                    f"An image of {size[0]} x {size[1]} pixels is larger than vision_aspect_ratio={aspect!r} allows: "
                    "the model scales its features down behind the tower, so that no visual token belongs to one "
                    "patch and none can be cut. Give a smaller image, or a budget that covers all of its "
                    f"{len(tokens)} visual tokens."
                )
            flat = tokens.squeeze(-1).long()
            layouts.append(ImageLayout(len(number), (len(number), *grid), flat, complete=False, blocked=blocked))
        return layouts

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


def tiles_of_images(config: Any, sizes: Tensor, images_per_sample: Any) -> list[int]:
    """Tiles of every image; images that share a prompt with others have one."""
    tiled = [True] * len(sizes)
    if images_per_sample is not None:
        tiled = [count == 1 for count in torch.as_tensor(images_per_sample).tolist() for _ in range(count)]
    return [
        image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size) if many else 1
        for size, many in zip(sizes, tiled, strict=True)
    ]
