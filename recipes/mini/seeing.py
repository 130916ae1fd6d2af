"""What flowcut-mini's tower and projector leave of pictures with a method attached, worked out once and kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowcut import Method, attach
from flowcut.attaching import patches_of
from flowcut.checkpoints.loading import LoadedModel
from flowcut.models import find_parts


@dataclass(frozen=True)
class Seen:
    """What the language model gets of one picture.

    Attributes:
        projected: ``[n, 576]``, its tokens.
        positions: ``[n]``, their positions, from 0.
    """

    projected: Tensor
    positions: Tensor


def see(loaded: LoadedModel, method: Method | None, pictures: Iterator[Image.Image], folder: Path) -> Iterator[Seen]:
    """What a method keeps of pictures, from ``folder`` where it was worked out before.

    Args:
        loaded: flowcut-mini.
        method: the method, or ``None`` for all tokens.
        pictures: in their order; files are named by it.
        folder: where it is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        path = folder / f"{number}.safetensors"
        if not path.exists():
            kept, _ = encoded(loaded, method, pixels_of(loaded, picture))
            partial = path.with_suffix(".partial")
            halves = {"projected": kept.projected.half().contiguous(), "positions": kept.positions.contiguous()}
            save_file(halves, partial)
            partial.rename(path)
        stored = load_file(path)
        yield Seen(stored["projected"].float(), stored["positions"])


def pixels_of(loaded: LoadedModel, picture: Image.Image) -> Tensor:
    """``[1, 3, 336, 336]``, as the model takes a picture."""
    pixels: Tensor = loaded.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
    return pixels


@torch.inference_mode()
def encoded(loaded: LoadedModel, method: Method | None, pixels: Tensor) -> tuple[Seen, float]:
    """What is kept of one picture, and the CPU seconds of tower and projector."""
    base, done = loaded.model.model, []
    hook = base.multi_modal_projector.register_forward_hook(
        lambda module, given, output: done.append((output, time.process_time()))
    )
    try:
        if method is None or method.positions == "compact":
            with nullcontext() if method is None else attach(loaded.model, method):
                started = time.process_time()
                base.get_image_features(pixels)
            positions = torch.arange(done[0][0].shape[-2])
        else:
            with attach(loaded.model, method) as handle:
                patches = patches_of(find_parts(loaded.model)[1])
                started = time.process_time()
                base(input_ids=torch.full((1, patches), base.config.image_token_id), pixel_values=pixels)
            positions = handle.trace.images[0].kept
    finally:
        hook.remove()
    projected, ended = done[0]
    return Seen(projected.reshape(len(positions), -1), positions), ended - started
