"""What a benchmark runs on: a loaded model and a question, or a family at real widths with random weights."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from ..algorithm.compiling import wanted
from ..checkpoints.loading import LoadedModel, choose_device, choose_dtype
from ..inputs.prompting import many_inputs
from ..models import find_parts
from .bench import Inputs
from .real_sizes import SUBJECTS, build, prompt

WORDS = 40
SPREAD = 0.06
"""Of query and key weights of a random tower, so that its attention is concentrated as in a trained one."""


def asked(loaded: LoadedModel, picture: Image.Image, question: str) -> Inputs:
    """Batches of one question about one picture."""

    def make(size: int) -> dict[str, Tensor]:
        inputs = many_inputs(loaded.processor, picture, [question] * size).to(loaded.device, dtype=loaded.dtype)
        return dict(inputs)

    return make


def random_model(
    name: str, layers: int | None, attention: str | None, device: str | None, dtype: str | None
) -> tuple[nn.Module, Inputs, str]:
    """A family at the widths of a real checkpoint; its model, its batches, and what it is in words.

    Raises:
        ValueError: there is no such family, device or dtype.
    """
    if name not in SUBJECTS:
        raise ValueError(f"random:{name} is not known; there are {', '.join(f'random:{one}' for one in SUBJECTS)}.")
    subject = SUBJECTS[name]
    where = choose_device(device)
    number_type = choose_dtype(dtype, where)
    depth = subject.layers if layers is None else layers
    model = build(subject, depth, attention or "sdpa", SPREAD, str(where), number_type)

    def make(size: int) -> dict[str, Tensor]:
        return {
            key: torch.cat([value] * size).to(where, number_type if value.is_floating_point() else None)
            for key, value in prompt(subject, WORDS).items()
        }

    told = f"random weights at the widths of {subject.hub_id}, {subject.picture}, {depth} decoder layers"
    return model, make, told


def environment(model: nn.Module) -> dict[str, Any]:
    """Where and how a model runs, in words."""
    parts = find_parts(model)[1]
    weight = next(model.parameters())
    device = weight.device
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": str(device),
        "hardware": hardware,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "attention": parts.tower.config._attn_implementation or "eager",
        "compiled_choices": wanted(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def processor_name(source: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name."""
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
