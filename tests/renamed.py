"""Arguments and outputs of models that transformers 5.24 renamed, under the name that the version at hand has."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaModel

CACHE = "cache" if "cache" in inspect.signature(LlavaModel.forward).parameters else "past_key_values"
"""The key-value cache, as an argument and in outputs."""


def image_features(output: Any) -> Tensor:
    """The projected features of all images in an output, one row after the other."""
    features = output.image_outputs.pooler_output if "image_outputs" in output else output.image_hidden_states
    return features if isinstance(features, Tensor) else torch.cat(list(features))
