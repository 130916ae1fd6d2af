"""What the tower's frozen blocks see of rendered scenes, computed once and read many times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import Dinov2Model

from flowcut.tasks import TaskQuestion, TaskScene

from .material import Material, Split
from .precision import fast_dtype
from .render import render
from .scene import GRID, Scene
from .tower import stem_blocks
from .workspace import Workspace

SHARD = 64
"""Scenes in one file."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ScenePicture:
    """A scene as the projector sees it.

    Attributes:
        stem: [577, 384] float16 hidden state in front of the adapted blocks: CLS, then patches row by row.
        scene: what it shows.
    """

    stem: Tensor
    scene: Scene


def pixels_of(pictures: list[Image.Image]) -> Tensor:
    """[n, 3, 336, 336] float32 pixel values under ImageNet's mean and standard deviation."""
    raw = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (raw.float() / 255 - mean) / std


@torch.inference_mode()
def stem_of(tower: Dinov2Model, pictures: list[Image.Image]) -> Tensor:
    """[n, 577, 384] float16 hidden states in front of the adapted blocks, in the tower's own precision."""
    hidden: Tensor = tower.embeddings(pixels_of(pictures).to(tower.dtype))
    for layer in tower.encoder.layer[: stem_blocks(tower)]:
        hidden = layer(hidden)
    return hidden.to(torch.float16)


def shard_path(workspace: Workspace, split: Split, shard: int) -> Path:
    """Where a shard's features lie; its descriptions lie beside it with the suffix .jsonl."""
    return workspace.scenes / f"{split}-{shard:05d}.npy"


def build_shard(workspace: Workspace, material: Material, tower: Dinov2Model, split: Split, shard: int) -> None:
    """Render and encode one shard unless it is there; a half-written one is never left behind."""
    target = shard_path(workspace, split, shard)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    stems, lines = [], []
    for start in range(shard * SHARD, (shard + 1) * SHARD, 8):
        rendered = [render(material, split, index) for index in range(start, start + 8)]
        stems.append(stem_of(tower, [picture for picture, _ in rendered]))
        lines += [scene.to_json() for _, scene in rendered]
    target.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, torch.cat(stems).numpy())
    partial.rename(target)


def shards(workspace: Workspace, split: Split) -> list[int]:
    """Numbers of the shards that are complete, in order."""
    return sorted(int(path.stem.rsplit("-", 1)[1]) for path in workspace.scenes.glob(f"{split}-*.npy"))


def read_shard(workspace: Workspace, split: Split, shard: int) -> Iterator[ScenePicture]:
    """The scenes of one shard, features memory-mapped until they are used.

    Raises:
        FileNotFoundError: the shard has not been built.
    """
    path = shard_path(workspace, split, shard)
    features = np.load(path, mmap_mode="r")
    lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    for index, line in enumerate(lines):
        yield ScenePicture(torch.from_numpy(np.array(features[index])), Scene.from_json(line))


def read_descriptions(workspace: Workspace, split: Split) -> Iterator[tuple[int, Scene]]:
    """Number and contents of every scene in the split's complete shards."""
    for shard in shards(workspace, split):
        lines = shard_path(workspace, split, shard).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
        for offset, line in enumerate(lines):
            yield shard * SHARD + offset, Scene.from_json(line)


def read_scene(workspace: Workspace, split: Split, number: int) -> ScenePicture:
    """One scene of a complete shard, by its number in the split.

    Raises:
        FileNotFoundError: its shard has not been built.
    """
    path = shard_path(workspace, split, number // SHARD)
    features = np.load(path, mmap_mode="r")[number % SHARD]
    line = path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()[number % SHARD]
    return ScenePicture(torch.from_numpy(np.array(features)), Scene.from_json(line))


def encode_split(
    workspace: Workspace, name: str, scenes: Iterable[TaskScene]
) -> Iterator[tuple[Tensor, NDArray[np.bool_], tuple[TaskQuestion, ...]]]:
    """Features, masks and questions of a packed split's scenes; features are computed once and kept.

    Args:
        workspace: where they are kept, below the split's name.
        name: the split's name with its version.
        scenes: the scenes wanted.
    """
    folder = workspace.scenes / name
    folder.mkdir(parents=True, exist_ok=True)
    tower: Dinov2Model | None = None
    for scene in scenes:
        path = folder / f"{scene.name}.npy"
        if not path.exists():
            if tower is None:
                tower = Dinov2Model.from_pretrained(workspace.tower, dtype=fast_dtype()).eval()
            np.save(path, stem_of(tower, [scene.picture()])[0].numpy())
        yield torch.from_numpy(np.load(path)), scene.touched, scene.questions


def halve(features: Tensor) -> Tensor:
    """Average features over 2 x 2 neighbours.

    Args:
        features: [576, width].

    Returns:
        [144, width].
    """
    grid = features.reshape(GRID // 2, 2, GRID // 2, 2, -1)
    return grid.mean(dim=(1, 3)).reshape(-1, features.shape[-1])
