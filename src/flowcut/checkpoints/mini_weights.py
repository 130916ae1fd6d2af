"""flowcut-mini's weights, from the files they ship in to the names of transformers' classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

IMAGE_SIZE = 336
PATCH_SIZE = 14
GRID = IMAGE_SIZE // PATCH_SIZE

_POSITIONS = "embeddings.position_embeddings"
_LANGUAGE_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ADAPTER_PREFIX = "base_model.model."
_LANGUAGE_PREFIX = "model."


def tower_from_weights(weights: Mapping[str, Tensor]) -> Dinov2Model:
    """DINOv2-small for 336 x 336 pictures, 576 patches and a CLS token, in float32.

    Args:
        weights: as :func:`flowcut.checkpoints.dinov2_onnx.tower_weights` names them; the positions of the patches are
            resampled to 24 x 24.

    Raises:
        RuntimeError: a weight is missing or has another shape (the message names the first ones).
    """
    state = {name: value.float() for name, value in weights.items()}
    positions = state[_POSITIONS]
    state[_POSITIONS] = torch.cat([positions[:, :1], resample(positions[:, 1:])], dim=1)
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    loader: Any = Dinov2Model
    model, report = loader.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise RuntimeError(f"These are not the expected weights of DINOv2-small; first differences: {wrong[:5]}")
    tower: Dinov2Model = model.eval()
    return tower


def resample(positions: Tensor) -> Tensor:
    """Patch positions ``[1, n * n, width]`` bicubically resampled to ``[1, 576, width]``."""
    side = int(positions.shape[1] ** 0.5)
    grid = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(GRID, GRID), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, GRID * GRID, -1)


def language_from_gguf(path: str | Path) -> dict[str, Tensor]:
    """A Llama's weights out of a GGUF file, dequantised to float32, under the names of ``LlamaModel``.

    transformers' own reader does the same, but reads the vocabulary several times, which takes half a minute.
    """
    import gguf

    reader: Any = gguf.GGUFReader(str(path))
    heads = {
        "attn_q": int(reader.fields["llama.attention.head_count"].contents()),
        "attn_k": int(reader.fields["llama.attention.head_count_kv"].contents()),
    }
    state = {}
    for tensor in reader.tensors:
        value = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        name = tensor.name.removesuffix(".weight")
        if name == "token_embd":
            state["embed_tokens.weight"] = value
        elif name == "output_norm":
            state["norm.weight"] = value
        else:
            _, layer, part = name.split(".")
            if part in heads:
                value = halves_apart(value, heads[part])
            state[f"layers.{layer}.{_LANGUAGE_NAMES[part]}.weight"] = value
    return state


def halves_apart(weight: Tensor, heads: int) -> Tensor:
    """Undo GGUF's order of rows in queries and keys, where rotary pairs lie side by side.

    Args:
        weight: ``[heads * size, width]``.
        heads: how many heads there are.
    """
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def merge_adapters(state: dict[str, Tensor], adapters: Mapping[str, Tensor], scaling: float) -> None:
    """Add LoRA adapters to the weights they belong to, in place.

    Args:
        state: weights under the names of ``LlamaModel`` or ``Dinov2Model``.
        adapters: under PEFT's names, ``lora_A`` ``[rank, in]`` and ``lora_B`` ``[out, rank]``, of any ranks.
        scaling: alpha over rank, the same for all.

    Raises:
        ValueError: an adapter belongs to no weight.
    """
    for name, down in adapters.items():
        if ".lora_A." not in name:
            continue
        target = name.removeprefix(_ADAPTER_PREFIX).removeprefix(_LANGUAGE_PREFIX).replace(".lora_A.", ".")
        if target not in state:
            raise ValueError(f"The adapter {name} belongs to no weight of the model.")
        up = adapters[name.replace(".lora_A.", ".lora_B.")]
        state[target] = state[target] + scaling * (up.float() @ down.float())
