"""First phase of training: the projector alone, on the tower as it came, under the dense alignment loss."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from .alignment import ASPECTS, CONTENTS, UNKNOWN, halve_targets, load_alignment, targets
from .features import halve, read_shard, shards
from .precision import fast_dtype
from .projector import PROJECTOR, new_projector
from .tower import Upper
from .workspace import Workspace

FOREGROUND_SHARE = 0.75
"""Share of a batch's patches that show an item; most patches of most scenes are background."""

WEIGHT_DECAY = 2.0
"""So much is needed: with 0.01 the projector names 48% of unseen objects' patches, with 3.0 it names 74%."""


def load_patches(workspace: Workspace, split: str, numbers: list[int]) -> tuple[Tensor, Tensor]:
    """Features [n, 384] float16 and targets [n, 6] of some shards' patches and of their 2 x 2 averages."""
    upper = Upper(workspace)
    features, wanted = [], []
    for number in numbers:
        for picture in read_shard(workspace, split, number):  # type: ignore[arg-type]
            full = targets(picture.scene)
            halved = halve_targets(full)
            known = halved[:, 0] != UNKNOWN
            with torch.inference_mode():
                seen = upper(picture.stem[None])[0]
            features += [seen.half(), halve(seen).half()[known]]
            wanted += [full, halved[known]]
    return torch.cat(features), torch.cat(wanted).to(torch.int16)


def align(
    workspace: Workspace,
    *,
    steps: int,
    batch: int = 1024,
    learning_rate: float = 5e-3,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> dict[str, float]:
    """Train the projector and store it; the rows of alignment.csv are its training curve.

    Args:
        steps: updates, each on `batch` patches.
        progress: called with the step and the loss.

    Returns:
        for each aspect the share of the test shards' patches that is named rightly.
    """
    torch.manual_seed(seed)
    alignment = load_alignment(workspace, fast_dtype())
    features, wanted = load_patches(workspace, "train", shards(workspace, "train"))
    background = wanted[:, 0] == CONTENTS.index("background")
    pools = [torch.where(~background)[0], torch.where(background)[0]]
    projector = new_projector(features[torch.randint(len(features), (20_000,))])
    optimizer = torch.optim.AdamW(projector.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    sizes = [int(batch * FOREGROUND_SHARE), batch - int(batch * FOREGROUND_SHARE)]
    workspace.training.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with (workspace.training / "alignment.csv").open("w", newline="", encoding="utf-8") as file:
        log = csv.writer(file)
        log.writerow(["step", "seconds", "loss", *ASPECTS])
        for step in range(steps):
            picked = torch.cat([pool[torch.randint(len(pool), (n,))] for pool, n in zip(pools, sizes, strict=True)])
            loss, right = alignment(projector(features[picked].float()), wanted[picked].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 25 == 0 or step == steps - 1:
                row = [round(right.get(aspect, float("nan")), 4) for aspect in ASPECTS]
                log.writerow([step, round(time.perf_counter() - started, 1), round(loss.item(), 4), *row])
                file.flush()
                if progress:
                    progress(step, loss.item())
    with torch.inference_mode():
        sample = projector(features[pools[0][torch.randint(len(pools[0]), (4096,))]].float())
    alignment.stretch(projector.linear_2, sample)
    folder = aligned_folder(workspace)
    folder.mkdir(exist_ok=True)
    save_file(dict(projector.state_dict()), folder / PROJECTOR)
    with torch.inference_mode():
        features, wanted = load_patches(workspace, "test", shards(workspace, "test")[:1])
        shown = wanted[:, 0] != CONTENTS.index("background")
        _, right = alignment(projector(features[shown].float()), wanted[shown].long())
    return right


def aligned_folder(workspace: Workspace) -> Path:
    """Where the aligned projector lies."""
    return workspace.training / "aligned"


def load_projector(folder: Path) -> LlavaMultiModalProjector:
    """The projector of a folder with weights, in float32."""
    projector = new_projector(torch.randn(8, 384))
    projector.load_state_dict({key: value.float() for key, value in load_file(folder / PROJECTOR).items()})
    return projector
