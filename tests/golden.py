"""The recorded cases of the public reference implementation, and the checkpoints they belong to."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlavaForConditionalGeneration

from flowcut.checkpoints import load_llava

FOLDER = Path(__file__).parent / "golden"
LLAVA_CASES = ("llava15_clip12", "llava15_clip9", "llava15_clip12_clspatch")


@dataclass(frozen=True)
class Case:
    """One recorded case."""

    name: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    model: LlavaForConditionalGeneration

    def input_ids(self, batch: int) -> Tensor:
        """The prompts, the reference's single -200 replaced by one placeholder for every visual token."""
        strategy = self.model.config.vision_feature_select_strategy
        count = self.model.config.image_seq_length + (strategy == "full")
        image = [self.model.config.image_token_id] * count
        rows = self.tensors[f"in.input_ids_b{batch}"].tolist()
        return torch.tensor([[new for old in row for new in (image if old == -200 else [old])] for row in rows])

    def pixels(self, batch: int) -> Tensor:
        return self.tensors["in.pixel_values"][:batch]


def write_checkpoint(name: str, folder: Path) -> tuple[dict[str, Any], CLIPVisionConfig]:
    """A golden case as a checkpoint folder in LLaVA's own format; returns its meta data and tower config."""
    meta = json.loads((FOLDER / name / "meta.json").read_text())
    weights = FOLDER / meta.get("weights_from", name) / "weights.safetensors"
    tower = CLIPVisionConfig(**meta["config"]["clip"])
    tower.save_pretrained(folder / "tower")
    config = {
        **meta["config"]["llava"],
        "mm_vision_tower": "tower",
        "architectures": ["LlavaLlamaForCausalLM"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(weights, folder / "model.safetensors")
    return meta, tower


def load_case(name: str, folder: Path) -> Case:
    meta, _ = write_checkpoint(name, folder)
    model, _ = load_llava(folder)
    return Case(name, meta, load_file(FOLDER / name / "tensors.safetensors"), model)
