"""LLaVA's projector, started so that raw tower features reach it in a workable range."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

PROJECTOR = "projector.safetensors"
"""The file that holds it, in every folder with weights."""

TOWER_WIDTH = 384
LANGUAGE_WIDTH = 576


def new_projector(features: Tensor) -> LlavaMultiModalProjector:
    """A fresh projector, 384 to 576 in two layers, in float32.

    DINOv2's unnormalised hidden states have a few channels that are far larger than the others. The first
    layer is started as if it saw each channel with mean 0 and deviation 1; no extra layer is needed.

    Args:
        features: [n, 384] a sample of tower features.
    """
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=TOWER_WIDTH),
        text_config=LlamaConfig(hidden_size=LANGUAGE_WIDTH, num_attention_heads=9),
    )
    projector = LlavaMultiModalProjector(config)
    mean, deviation = features.float().mean(dim=0), features.float().std(dim=0) + 1e-4
    first = projector.linear_1
    with torch.no_grad():
        first.weight.normal_(0, TOWER_WIDTH**-0.5).div_(deviation)
        first.bias.copy_(-(first.weight @ mean))
        projector.linear_2.weight.normal_(0, LANGUAGE_WIDTH**-0.5)
        projector.linear_2.bias.zero_()
    return projector
