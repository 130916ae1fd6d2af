"""Second phase of training: projector and adapters together, on packed dialogues."""

from __future__ import annotations

import csv
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flowcut.tasks import TASKS
from flowcut.tasks import TaskQuestion as Question

from .align import projector_path
from .alignment import DenseAlignment, halve_targets, targets
from .dialogue import halved_positions
from .features import SHARD, ScenePicture, halve, read_shard, shards
from .guidance import asked_patches
from .questions import ask
from .scene import GRID
from .student import Student
from .workspace import Workspace

ALIGNMENT_WEIGHT = 0.1
"""Weight of the dense alignment loss, so that patches keep saying what they show."""

FEW = {"exist": 4, "name": 3, "where": 4, "count": 1, "color": 1, "shape": 1, "read": 1}
"""Questions of each task where a stage asks few."""


@dataclass(frozen=True)
class Stage:
    """One stretch of training at constant resolution.

    Attributes:
        name: names its checkpoint folder and its log.
        scenes: number of dialogues.
        halved: whether features are averaged 2 x 2 (144 visual tokens) or all 576 are seen.
        first: index of the first training scene; scenes follow in order and start again at the end.
        accumulate: dialogues per update.
        adapter_rate: learning rate of the adapters at the start.
        projector_rate: learning rate of the projector at the start; 0 leaves it as the alignment left it.
        final_share: learning rates at the end, as a share of those at the start (cosine in between).
        seed: draws the questions and the prompts.
        few: whether to ask only about a dozen questions for each picture, most of them where things are and
            whether they are there. Cheap steps help until these two are understood at all.
        guided: weight of the loss that shows some heads the patches a question is about; 0 for none.
    """

    name: str
    scenes: int
    halved: bool
    first: int = 0
    accumulate: int = 4
    adapter_rate: float = 1e-3
    projector_rate: float = 0.0
    final_share: float = 1.0
    seed: int = 0
    few: bool = False
    guided: float = 0.0


class HalfPrecisionAdam:
    """AdamW on float32 copies of bfloat16 weights: updates smaller than bfloat16's steps still add up.

    Args:
        groups: weights with their learning rates.
    """

    def __init__(self, groups: list[tuple[list[nn.Parameter], float]]) -> None:
        self._weights = [weight for weights, _ in groups for weight in weights]
        self._masters = [weight.detach().float().clone() for weight in self._weights]
        masters = iter(self._masters)
        self.adam = torch.optim.AdamW(
            [{"params": [next(masters) for _ in weights], "lr": rate, "start": rate} for weights, rate in groups],
            weight_decay=0.0,
            betas=(0.9, 0.98),
        )

    def step(self, factor: float) -> None:
        """Update with gradients clipped to norm 1 and rates scaled by `factor`; clear the gradients."""
        for master, weight in zip(self._masters, self._weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        for group in self.adam.param_groups:
            group["lr"] = group["start"] * factor
        self.adam.step()
        with torch.no_grad():
            for master, weight in zip(self._masters, self._weights, strict=True):
                weight.copy_(master)

    def state(self) -> dict[str, object]:
        """Everything needed to go on later."""
        return {"masters": self._masters, "adam": self.adam.state_dict()}

    def restore(self, state: dict[str, object]) -> None:
        """Go on from `state`."""
        with torch.no_grad():
            stored: list[Tensor] = state["masters"]  # type: ignore[assignment]
            for master, weight, value in zip(self._masters, self._weights, stored, strict=True):
                master.copy_(value)
                weight.copy_(value)
        self.adam.load_state_dict(state["adam"])  # type: ignore[arg-type]


def train(
    workspace: Workspace,
    stage: Stage,
    *,
    start_from: Path | None,
    progress: Callable[[int, str], None] | None = None,
    save_every: int = 200,
) -> Path:
    """Run a stage, or go on where it was interrupted.

    Args:
        start_from: a folder with weights (`Student.save`); None for the aligned projector and new adapters.
        progress: called with the number of dialogues done and a line about them.
        save_every: dialogues between checkpoints.

    Returns:
        the folder with the stage's weights.
    """
    torch.manual_seed(stage.seed)
    student = Student(workspace)
    if start_from is None:
        student.projector.load_state_dict(load_file(projector_path(workspace)))
    else:
        student.load(start_from)
    student.train()
    student.projector.requires_grad_(stage.projector_rate > 0)
    alignment = DenseAlignment(student.embeddings.weight, student.packer._tokenizer)
    optimizer = HalfPrecisionAdam(
        [
            (student.adapters(), stage.adapter_rate),
            ([p for p in student.projector.parameters() if p.requires_grad], stage.projector_rate),
        ]
    )
    folder = workspace.training / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    resume = folder / "resume.pt"
    done = 0
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        done = state["done"]
        optimizer.restore(state["optimizer"])
    started = time.perf_counter()
    right: dict[str, list[bool]] = defaultdict(list)
    losses: list[float] = []
    with (folder / "log.csv").open("a", newline="", encoding="utf-8") as file:
        log = csv.writer(file)
        if done == 0:
            log.writerow(["dialogues", "seconds", "loss", *TASKS])
        for picture in _scenes(workspace, stage, done):
            loss, answers = _step(student, alignment, picture, stage, done)
            (loss / stage.accumulate).backward()
            losses.append(loss.item())
            for task, results in answers.items():
                right[task] += results
            done += 1
            if done % stage.accumulate == 0:
                optimizer.step(_factor(done / stage.scenes, stage.final_share, done / stage.accumulate))
            if done % 40 == 0:
                shares = [round(float(np.mean(right[t])), 3) if right[t] else float("nan") for t in TASKS]
                log.writerow([done, round(time.perf_counter() - started), round(float(np.mean(losses)), 4), *shares])
                file.flush()
                if progress:
                    progress(done, f"loss {np.mean(losses):.3f} " + " ".join(map(str, shares)))
                right.clear()
                losses.clear()
            if done % save_every == 0 or done == stage.scenes:
                torch.save({"done": done, "optimizer": optimizer.state()}, folder / "resume.partial")
                (folder / "resume.partial").rename(resume)
                student.save(folder)
    return folder


def _step(
    student: Student, alignment: DenseAlignment, picture: ScenePicture, stage: Stage, done: int
) -> tuple[Tensor, dict[str, list[bool]]]:
    random = np.random.default_rng((stage.seed, stage.first, done))
    features, wanted = picture.features.float(), targets(picture.scene)
    positions = torch.arange(GRID * GRID)
    if stage.halved:
        features, wanted, positions = halve(features), halve_targets(wanted), halved_positions(GRID)
    projected = student.projector(features)
    questions = ask(picture.scene, random)
    if stage.few:
        questions = _some(questions)
    packed = student.packer.pack(questions, positions, random)
    asked = asked_patches(picture.scene.touched, questions, halved=stage.halved)
    loss, answers = student.loss(packed, projected, asked, stage.guided)
    if stage.projector_rate > 0:
        loss = loss + ALIGNMENT_WEIGHT * alignment(projected, wanted)[0]
    return loss, answers


def _some(questions: list[Question]) -> list[Question]:
    taken: Counter[str] = Counter()
    kept = []
    for question in questions:
        taken[question.task] += 1
        if taken[question.task] <= FEW[question.task]:
            kept.append(question)
    return kept


def _scenes(workspace: Workspace, stage: Stage, done: int) -> Iterator[ScenePicture]:
    """The stage's remaining scenes. Shards that are built meanwhile are used as soon as they are there."""
    number = stage.first + done
    left = stage.scenes - done
    while left:
        known = shards(workspace, "train")
        shard, offset = divmod(number % (len(known) * SHARD), SHARD)
        for picture in list(read_shard(workspace, "train", known[shard]))[offset : offset + left]:
            yield picture
            number, left = number + 1, left - 1


def _factor(progress: float, final_share: float, updates: float) -> float:
    cosine = final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return cosine * min(1.0, updates / 20)
