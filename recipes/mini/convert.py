"""Turn the downloaded weight files into Hugging Face checkpoints."""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from .workspace import Workspace

IMAGE_SIZE = 336
PATCH_SIZE = 14
GRID = IMAGE_SIZE // PATCH_SIZE
_PREFIX = "backbone."
_CLS_POSITION = "onnx::Concat_1957"
_PATCH_POSITIONS = "onnx::Reshape_1962"


def tower_from_onnx(path: str) -> Dinov2Model:
    """Read DINOv2-small out of the ONNX file, its positions resampled to 24 x 24 patches.

    The exporter kept the names of biases and norms but not those of the linear weights; these are found by
    the MatMul node that uses them, and are stored transposed.

    Args:
        path: the ONNX file.

    Returns:
        a `Dinov2Model` for 336 x 336 pictures, 576 patches and a CLS token, in float32.

    Raises:
        RuntimeError: a weight of the model was not found in the file (the message names the first ones).
    """
    graph = onnx.load(path).graph
    stored = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    state = {name.removeprefix(_PREFIX): value for name, value in stored.items() if name.startswith(_PREFIX)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in stored:
            parts = node.name.strip("/").split("/")[1:-1]
            state[".".join(parts) + ".weight"] = stored[node.input[1]].T.contiguous()
    state["embeddings.position_embeddings"] = torch.cat(
        [stored[_CLS_POSITION], _resample(stored[_PATCH_POSITIONS])], dim=1
    )
    state["embeddings.mask_token"] = torch.zeros(1, 384)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    model, report = Dinov2Model.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise RuntimeError(f"{path} doesn't hold the expected DINOv2-small; first differences: {wrong[:5]}")
    return model.eval()


def _resample(positions: Tensor) -> Tensor:
    side = int(positions.shape[1] ** 0.5)
    grid = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(GRID, GRID), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, GRID * GRID, -1)


def convert(workspace: Workspace) -> None:
    """Write the vision tower and the language model with `save_pretrained`; skips what is there already."""
    if not (workspace.tower / "config.json").exists():
        tower_from_onnx(str(workspace.tower_onnx)).save_pretrained(workspace.tower)
    if not (workspace.language / "config.json").exists():
        file = workspace.language_gguf
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        quantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
        config = LlamaConfig.from_dict(
            {key: value for key, value in quantized.config.to_dict().items() if key != "quantization_config"}
        )
        model = LlamaForCausalLM(config).to(torch.bfloat16)  # a copy that `save_pretrained` accepts
        model.load_state_dict(quantized.state_dict())
        tokenizer.save_pretrained(workspace.language)
        model.save_pretrained(workspace.language)
