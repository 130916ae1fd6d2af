"""Turn the downloaded weight files into Hugging Face checkpoints."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Model, LlamaConfig, LlamaForCausalLM

from flowcut.checkpoints.dinov2_onnx import tower_weights
from flowcut.checkpoints.mini_weights import tower_from_weights

from .workspace import Workspace


def tower_from_onnx(path: str) -> Dinov2Model:
    """Read DINOv2-small out of the ONNX file, its positions resampled to 24 x 24 patches, in float32."""
    return tower_from_weights({name: torch.from_numpy(value.copy()) for name, value in tower_weights(path).items()})


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
