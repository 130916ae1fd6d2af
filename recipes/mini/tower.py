"""The vision tower: a frozen stem, and LoRA adapters in the last blocks, so that patches know their surroundings."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Dinov2Model

from .workspace import Workspace

ADAPTED_BLOCKS = 5
"""So many of the blocks that are read have adapters; the last block of all is not read, as in LLaVA."""

RANK = 32
ALPHA_OVER_RANK = 2

FILE = "tower_adapters.safetensors"

_MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]


def stem_blocks(tower: Dinov2Model) -> int:
    """How many blocks stand in front of the adapted ones: 6 of DINOv2-small's 12."""
    return max(0, len(tower.encoder.layer) - 1 - ADAPTED_BLOCKS)


def with_adapters(tower: Dinov2Model) -> PeftModel:
    """The tower with new adapters, which change nothing yet, in every matrix of the adapted blocks."""
    adapted = range(stem_blocks(tower), len(tower.encoder.layer) - 1)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA_OVER_RANK * RANK,
        target_modules=_MATRICES,
        layers_to_transform=list(adapted),
        layers_pattern="layer",
    )
    return get_peft_model(tower, config)


def read_adapters(adapted: PeftModel, folder: Path) -> None:
    """Give the tower the adapters stored in a folder."""
    set_peft_model_state_dict(adapted, load_file(folder / FILE))


class Upper(nn.Module):
    """The adapted blocks of the tower, in float32.

    Args:
        workspace: where the converted tower lies.
        attention: "sdpa", or "eager" where the attention itself is to be seen.
    """

    def __init__(self, workspace: Workspace, attention: str = "sdpa") -> None:
        super().__init__()
        tower = Dinov2Model.from_pretrained(workspace.tower, dtype=torch.float32, attn_implementation=attention).eval()
        self.blocks = tower.encoder.layer[stem_blocks(tower) : -1]
        self.adapted = with_adapters(tower)

    def forward(self, stem: Tensor) -> Tensor:
        """[n, 576, 384] float32 features, the hidden state -2 without CLS, from [n, 577, 384] stems."""
        return self.levels(stem)[-1]

    def levels(self, stem: Tensor) -> list[Tensor]:
        """The same behind every adapted block, the last of them last."""
        hidden, levels = stem.float(), []
        for block in self.blocks:
            hidden = block(hidden)
            levels.append(hidden[:, 1:])
        return levels

    def adapters(self) -> list[nn.Parameter]:
        """The adapters' weights."""
        return [weight for weight in self.adapted.parameters() if weight.requires_grad]

    def save(self, folder: Path) -> None:
        """Write tower_adapters.safetensors, in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(self.adapted)
        save_file({key: value.to(torch.float16).contiguous() for key, value in state.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        read_adapters(self.adapted, folder)
