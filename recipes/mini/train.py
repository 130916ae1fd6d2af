"""Third phase of training: the language model's adapters, and the projector if told so, on packed dialogues."""

from __future__ import annotations

import csv
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flowcut.tasks import TASKS

from .adapt import adapted_folder
from .alignment import DenseAlignment, halve_targets, targets
from .curriculum import chosen_questions, question_weights, training_scenes
from .dialogue import halved_positions
from .features import ScenePicture, halve, read_scene
from .guidance import asked_patches
from .scene import GRID
from .student import Student
from .workers import average_gradients, gathered
from .workspace import Workspace

ALIGNMENT_WEIGHT = 0.1
"""Weight of the dense alignment loss, so that patches keep saying what they show."""

COMPACT = 1 / 3
"""Share of the dialogues with averaged features that number them one by one, so that contents tell where they are."""

REPORT_EVERY = 40
"""Dialogues between two rows of a log."""


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
        guided: weight of the loss that shows some heads the patches a question is about; 0 for none.
        others: most questions in a dialogue that don't ask for numbers, all of it about scenes made for numbers; None
            for all that `curriculum` says.
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
    guided: float = 0.0
    others: int | None = None


class HalfPrecisionAdam:
    """AdamW on float32 copies of the weights: updates smaller than bfloat16's steps still add up.

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

    def share(self, workers: int) -> None:
        """Replace every gradient by its mean over all workers."""
        average_gradients(self._weights, workers)

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
    worker: int = 0,
    workers: int = 1,
    progress: Callable[[int, str], None] | None = None,
    save_every: int = 40,
) -> Path:
    """Run a stage, or go on where it was interrupted.

    Args:
        start_from: a folder with weights (`Student.save`); None for what `adapt` wrote, and new adapters in the
            language model.
        worker: this process among `workers`; only the first one writes anything.
        workers: processes that share the dialogues (`workers.run`). Each takes every `workers`-th one and all apply
            the mean of their gradients.
        progress: called with the number of dialogues done and a line about them.
        save_every: dialogues between checkpoints.

    Returns:
        the folder with the stage's weights.
    """
    torch.manual_seed(stage.seed)
    student = Student(workspace)
    student.load(start_from or adapted_folder(workspace))
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
    first = worker == 0
    scenes = training_scenes(workspace, numbers=stage.others is not None)
    tally = _Tally(folder / "log.csv" if first else None, done)
    since_update = 0
    for number in range(done + worker, stage.scenes - stage.scenes % workers, workers):
        picture = read_scene(workspace, "train", scenes[(stage.first + number) % len(scenes)])
        loss, answers = _step(student, alignment, picture, stage, number)
        (loss / stage.accumulate).backward()
        tally.add(loss.item(), answers)
        done += workers
        since_update += 1
        if since_update == stage.accumulate:
            since_update = 0
            optimizer.share(workers)
            optimizer.step(rate_factor(done / stage.scenes, stage.final_share, done / workers / stage.accumulate))
        if done % REPORT_EVERY < workers:
            line = tally.write(done, workers)
            if progress and first:
                progress(done, line)
        if first and (done % save_every < workers or done + workers > stage.scenes):
            torch.save({"done": done, "optimizer": optimizer.state()}, folder / "resume.partial")
            (folder / "resume.partial").rename(resume)
            student.save(folder)
    return folder


class _Tally:
    """Collects losses and answers between two rows of the log; `path` is None in all workers but the first."""

    def __init__(self, path: Path | None, done: int) -> None:
        self._path = path
        self._started = time.perf_counter()
        self._losses: list[float] = []
        self._right: dict[str, list[bool]] = defaultdict(list)
        if path and done == 0:
            path.write_text(",".join(["dialogues", "seconds", "loss", *TASKS]) + "\n", encoding="utf-8")

    def add(self, loss: float, answers: dict[str, list[bool]]) -> None:
        self._losses.append(loss)
        for task, results in answers.items():
            self._right[task] += results

    def write(self, done: int, workers: int) -> str:
        """One row about all workers' dialogues since the row before."""
        everyone = gathered((self._losses, dict(self._right)), workers)
        loss = float(np.mean([value for losses, _ in everyone for value in losses]))
        shares = []
        for task in TASKS:
            results = [value for _, right in everyone for value in right.get(task, [])]
            shares.append(round(float(np.mean(results)), 3) if results else float("nan"))
        if self._path:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([done, round(time.perf_counter() - self._started), round(loss, 4), *shares])
        self._losses, self._right = [], defaultdict(list)
        return f"loss {loss:.3f} " + " ".join(map(str, shares))


def _step(
    student: Student, alignment: DenseAlignment, picture: ScenePicture, stage: Stage, done: int
) -> tuple[Tensor, dict[str, list[bool]]]:
    random = np.random.default_rng((stage.seed, stage.first, done))
    features, wanted = student.see(picture.stem), targets(picture.scene)
    positions = torch.arange(GRID * GRID)
    if stage.halved:
        features, wanted, positions = halve(features), halve_targets(wanted), halved_positions(GRID)
        if random.random() < COMPACT:
            positions = torch.arange(len(positions))
    projected = student.projector(features)
    questions = chosen_questions(picture.scene, random, stage.others)
    packed = student.packer.pack(questions, positions, random)
    asked = asked_patches(picture.scene.touched, questions, halved=stage.halved)
    loss, answers = student.loss(packed, projected, asked, stage.guided, question_weights(picture.scene, questions))
    if stage.projector_rate > 0:
        loss = loss + ALIGNMENT_WEIGHT * alignment(projected, wanted)[0]
    return loss, answers


def rate_factor(progress: float, final_share: float, updates: float) -> float:
    """Learning rate as a share of the highest: a warm-up of 20 updates, then a cosine down to `final_share`."""
    cosine = final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return cosine * min(1.0, updates / 20)
