"""Second phase of training: the tower's last blocks and the projector together, under the dense alignment loss.

A patch by itself cannot tell how many things like its own the picture shows. The tower's attention can find out.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from .align import aligned_folder, load_projector
from .alignment import ASPECTS, CONTENTS, UNKNOWN, anchors, halve_targets, load_alignment, targets
from .counting_heads import counting, counting_heads
from .features import ScenePicture, halve, read_descriptions, read_scene
from .precision import fast_dtype
from .projector import PROJECTOR, TOWER_WIDTH
from .scene import Scene
from .tower import FILE, Upper
from .workers import average_gradients, gathered
from .workspace import Workspace

SCENES = 8
"""Scenes in one update."""

SAMPLED, SAMPLED_HALVED = 160, 64
"""Patches, and 2 x 2 averages, of each scene in one update."""

BACKGROUND_SHARE = 0.25
"""Share of them that show no item. Small items are drawn as if they had more patches."""

LONELY_KEPT = 0.3
"""Share of the scenes seen in which nothing is there twice."""

ONES_KEPT = 0.3
"""Share of the things without a double that say so; scenes are full of them."""

MARKED = 2
"""The adapted block behind which the middle of every item is to be marked; later blocks can count the marks."""

ANCHORS = 2.0
"""Weight of the marks in the loss."""

ANCHOR_WEIGHT = 20.0
"""Weight of a patch in the middle of an item, where any other has 1."""

COUNTING = 1.0
"""Weight of the loss on the counting heads."""

MARKER_RATE = 1e-2
"""Learning rate of the linear layer that reads the marks; it is thrown away in the end."""

REPORT_EVERY, SAVE_EVERY = 160, 800
"""Scenes between two rows of the log, and between two checkpoints."""

_CONTENT, _COUNT, _SIZE = (ASPECTS.index(aspect) for aspect in ("content", "count", "size"))


NAME = "adapted"
"""The usual name of the folder with the adapted tower and its projector."""


def adapted_folder(workspace: Workspace, name: str = NAME) -> Path:
    """Where an adapted tower and its projector lie."""
    return workspace.training / name


def drawn(wanted: Tensor, number: int, random: torch.Generator) -> Tensor:
    """Indices of `number` patches, drawn with replacement; [number] int64.

    Args:
        wanted: [n, aspects] as from `targets` or `halve_targets`; patches of unknown content are never drawn.
        number: how many.
        random: draws them.
    """
    size, content = wanted[:, _SIZE], wanted[:, _CONTENT]
    weight = torch.where(size == UNKNOWN, 1.0, 2.0 ** (-0.5 * size))
    weight[content == UNKNOWN] = 0.0
    background = content == CONTENTS.index("background")
    for part, share in ((background, BACKGROUND_SHARE), (~background, 1 - BACKGROUND_SHARE)):
        weight[part] *= share / weight[part].sum().clamp(min=1e-6)
    return torch.multinomial(weight, number, replacement=True, generator=random)


def thinned(wanted: Tensor, random: torch.Generator) -> Tensor:
    """Targets in which most things that are there once don't tell their number."""
    silent = torch.rand(len(CONTENTS), generator=random) >= ONES_KEPT
    once = (wanted[:, _COUNT] == 0) & silent[wanted[:, _CONTENT]]
    wanted[once, _COUNT] = UNKNOWN
    return wanted


def adapt(
    workspace: Workspace,
    *,
    scenes: int,
    name: str = NAME,
    start_from: Path | None = None,
    rate: float = 2.5e-4,
    projector_rate: float = 5e-4,
    weight_decay: float = 1.0,
    seed: int = 0,
    worker: int = 0,
    workers: int = 1,
    progress: Callable[[int, str], None] | None = None,
) -> Path:
    """Train tower and projector, or go on where it was interrupted; log.csv in the folder is the training curve.

    Args:
        scenes: how many are seen, rounded up to whole updates of `SCENES`.
        name: names the folder.
        start_from: a folder with a projector, and adapters of the tower if it has some; None for what `align` wrote.
        rate: learning rate of the tower's adapters at its highest.
        projector_rate: the projector's.
        weight_decay: the projector's.
        seed: draws scenes and patches.
        worker: this process among `workers`; only the first one writes anything.
        workers: processes that share the scenes of every update (`workers.run`); a divisor of `SCENES`.
        progress: called with the number of scenes seen and a line about them.

    Returns:
        the folder with projector and tower adapters.
    """
    if SCENES % workers:
        raise ValueError(f"{workers} workers can't share {SCENES} scenes evenly; use a divisor of {SCENES}")
    scenes = math.ceil(scenes / SCENES) * SCENES
    torch.manual_seed(seed)
    first = worker == 0
    alignment = load_alignment(workspace)
    start = start_from or aligned_folder(workspace)
    upper, projector = Upper(workspace, attention="eager"), load_projector(start)
    if (start / FILE).exists():
        upper.load(start)
    marker = nn.Linear(TOWER_WIDTH, 1)
    optimizer = torch.optim.AdamW(
        [
            {"params": upper.adapters(), "start": rate, "weight_decay": 0.0},
            {"params": list(marker.parameters()), "start": MARKER_RATE, "weight_decay": 0.0},
            {"params": list(projector.parameters()), "start": projector_rate, "weight_decay": weight_decay},
        ],
        betas=(0.9, 0.98),
    )
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    folder = adapted_folder(workspace, name)
    folder.mkdir(parents=True, exist_ok=True)
    resume, log = folder / "resume.pt", folder / "log.csv"
    modules = {"upper": upper, "projector": projector, "marker": marker, "optimizer": optimizer}
    done = 0
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        done = state.pop("done")
        for part, module in modules.items():
            module.load_state_dict(state[part])
    elif first:
        columns = ["scenes", "seconds", "loss", "anchors", "counting", *ASPECTS]
        log.write_text(",".join(columns) + "\n", encoding="utf-8")
    order = _order(workspace, scenes, seed)
    started = time.perf_counter()
    rows: list[list[float]] = []
    while done < scenes:
        mine = order[done : done + SCENES][worker::workers]
        pictures = [read_scene(workspace, "train", number) for number in mine]
        random = torch.Generator().manual_seed(seed * 1_000_003 + done + worker)
        middle, seen, attention = _seen(upper, pictures)
        features, wanted = _patches(seen, pictures, random)
        loss, right = alignment(projector(features), wanted)
        marked = torch.stack([anchors(picture.scene) for picture in pictures])
        weight = torch.where(marked > 0, ANCHOR_WEIGHT, 1.0)
        anchored = binary_cross_entropy_with_logits(marker(middle)[..., 0], marked, weight)
        pairs = zip(attention, pictures, strict=True)
        counted = torch.stack([counting(heads, picture.scene) for heads, picture in pairs]).mean()
        loss = loss + ANCHORS * anchored + COUNTING * counted
        optimizer.zero_grad()
        loss.backward()
        average_gradients(trained, workers)
        torch.nn.utils.clip_grad_norm_(upper.adapters(), 1.0)
        warm = min(1.0, (done + SCENES) / SCENES / 40)
        factor = warm * (0.02 + 0.49 * (1 + math.cos(math.pi * done / scenes)))
        for group in optimizer.param_groups:
            group["lr"] = group["start"] * factor
        optimizer.step()
        told = [loss.item(), anchored.item(), counted.item()]
        rows.append([*told, *(right.get(aspect, math.nan) for aspect in ASPECTS)])
        done += SCENES
        if done % REPORT_EVERY == 0 or done == scenes:
            everyone = np.concatenate(gathered(rows, workers))
            means = [round(float(value), 4) for value in np.nanmean(everyone, axis=0)]
            rows = []
            if first:
                with log.open("a", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerow([done, round(time.perf_counter() - started), *means])
            if progress:
                progress(done, f"loss {means[0]:.3f}")
        if first and (done % SAVE_EVERY == 0 or done == scenes):
            state = {part: module.state_dict() for part, module in modules.items()}
            torch.save({"done": done, **state}, folder / "resume.partial")
            (folder / "resume.partial").rename(resume)
            upper.save(folder)
            save_file(dict(projector.state_dict()), folder / PROJECTOR)
    return folder


def _order(workspace: Workspace, scenes: int, seed: int) -> list[int]:
    """Numbers of the scenes to see, in a random order: all with doubles, some of the others, again from the start."""
    random = np.random.default_rng(seed)
    numbers = [
        number
        for number, scene in read_descriptions(workspace, "train")
        if _has_doubles(scene) or random.random() < LONELY_KEPT
    ]
    rounds = math.ceil(scenes / len(numbers))
    return [numbers[int(index)] for _ in range(rounds) for index in random.permutation(len(numbers))][:scenes]


def _has_doubles(scene: Scene) -> bool:
    names = [item.name for item in scene.items if item.kind == "noun"]
    return len(set(names)) < len(names)


def _seen(upper: Upper, pictures: list[ScenePicture]) -> tuple[Tensor, Tensor, Tensor]:
    """What the tower gives for some scenes, float32 all of it.

    Returns:
        [n, 576, 384] behind block `MARKED` of the adapted ones, the same in the end, and [n, heads, 577, 577] the
        attention of the counting heads.
    """
    stems = torch.stack([picture.stem for picture in pictures]).float()
    fast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_dtype() == torch.bfloat16)
    with fast, counting_heads(upper.blocks) as heads:
        levels = upper.levels(stems)
    return levels[min(MARKED, len(levels) - 1)].float(), levels[-1].float(), torch.stack(heads, dim=1).float()


def _patches(seen: Tensor, pictures: list[ScenePicture], random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features [n, 384] and targets [n, aspects] of patches and averages drawn from some scenes."""
    features, wanted = [], []
    for feature, picture in zip(seen, pictures, strict=True):
        full = thinned(targets(picture.scene), random)
        for values, want, number in ((feature, full, SAMPLED), (halve(feature), halve_targets(full), SAMPLED_HALVED)):
            index = drawn(want, number, random)
            features.append(values[index])
            wanted.append(want[index])
    return torch.cat(features), torch.cat(wanted)
