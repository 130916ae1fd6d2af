"""Goes on with the last phase of training on the tokens that a method keeps, and asks what that has taught.

Tower and projector stay as they are, so what a method keeps of a picture never changes (`seeing.py`). The language
model's adapters learn from the same dialogues, in the same order, at the same rate, for every method.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flowcut import Method
from flowcut.checkpoints.loading import LoadedModel
from flowcut.methods.naming import describe
from flowcut.tasks import TaskQuestion, TaskSplit

from .curriculum import chosen_questions, question_weights
from .material import Material
from .questions import ask
from .render import render
from .scene import Scene
from .seeing import Seen, encoded, pixels_of, see
from .student import Student, answered
from .train import HalfPrecisionAdam, rate_factor
from .workspace import Workspace

FIRST, BETWEEN = 41_000, 2_000
"""Number of the first training scene, behind all that flowcut-mini has seen, and how far seeds are apart."""

OTHERS = 5
"""Most questions of a dialogue that don't ask for numbers, as in the last stage."""

RATE, FINAL_SHARE = 3e-4, 0.05
"""Learning rate of the adapters at its highest, and its share at the end."""


@dataclass(frozen=True)
class Going:
    """What all methods have in common.

    Attributes:
        workspace: of the recipe.
        loaded: flowcut-mini, for its tower.
        dialogues: one for each scene; an update follows each.
        start_from: a folder with weights (`Student.save`).
        seed: chooses scenes, questions and prompts.
    """

    workspace: Workspace
    loaded: LoadedModel
    dialogues: int
    start_from: Path
    seed: int

    @property
    def root(self) -> Path:
        """Where all of it is kept."""
        return self.workspace.training / "cut"

    def folder(self, method: Method | None) -> Path:
        """Where a method's weights and log are kept."""
        return self.root / f"{name_of(method)}-seed-{self.seed}"

    def seen(self, method: Method | None, what: str) -> Path:
        """Where it is kept what a method keeps of some pictures."""
        return self.root / "seen" / name_of(method) / what


def name_of(method: Method | None) -> str:
    """A method's name for files: ``flowcut-64``, or ``uncut``."""
    if method is None:
        return "uncut"
    settings = "".join(one if one.isalnum() else "-" for one in describe(method)).strip("-")
    return f"{settings}-{method.target_num}"


def training_scenes(workspace: Workspace, count: int, seed: int) -> list[tuple[Image.Image, Scene]]:
    """``count`` scenes that show something twice or oftener, which no seed shares with another."""
    material = Material(workspace)
    chosen: list[tuple[Image.Image, Scene]] = []
    number = FIRST + BETWEEN * seed
    while len(chosen) < count:
        picture, scene = render(material, "train", number)
        questions = ask(scene, np.random.default_rng(number))
        if max((int(one.answer) for one in questions if one.task == "count"), default=0) > 1:
            chosen.append((picture, scene))
        number += 1
    return chosen


def learner(going: Going) -> tuple[Student, HalfPrecisionAdam]:
    """A student with the weights before, in training, and what updates its adapters."""
    torch.manual_seed(going.seed)
    student = Student(going.workspace)
    student.load(going.start_from)
    student.train()
    student.projector.requires_grad_(False)
    return student, HalfPrecisionAdam([(student.adapters(), RATE)])


def learn(
    student: Student, optimizer: HalfPrecisionAdam, scene: Scene, visual: Seen, going: Going, number: int
) -> tuple[float, list[bool]]:
    """One update with one dialogue: its loss, and which of its questions were answered rightly before it."""
    random = np.random.default_rng((going.seed, number))
    questions = chosen_questions(scene, random, OTHERS)
    packed = student.packer.pack(questions, visual.positions, random)
    nothing = torch.zeros(len(questions), len(visual.positions))
    loss, answers = student.loss(packed, visual.projected, nothing, 0.0, question_weights(scene, questions))
    loss.backward()
    optimizer.step(rate_factor((number + 1) / going.dialogues, FINAL_SHARE, float(number + 1)))
    return loss.item(), [one for task in answers.values() for one in task]


def train_cut(going: Going, method: Method | None, *, save_every: int, progress: Callable[[int, str], None]) -> Path:
    """Train adapters on what a method keeps, or go on where it was interrupted.

    Args:
        going: see :class:`Going`.
        method: what cuts; ``None`` for all tokens.
        save_every: dialogues between weights that are kept.
        progress: called with the number of dialogues and a line about them.

    Returns:
        the folder, with ``log.csv`` and, below it, a folder of weights for each number of dialogues.
    """
    folder = going.folder(method)
    folder.mkdir(parents=True, exist_ok=True)
    scenes = training_scenes(going.workspace, going.dialogues, going.seed)
    kept = going.seen(method, f"train-{going.seed}")
    seen = see(going.loaded, method, (picture for picture, _ in scenes), kept)
    student, optimizer = learner(going)
    resume, log, done = folder / "resume.pt", folder / "log.csv", 0
    rows: list[list[Any]] = [["dialogue", "loss", "right", "questions"]]
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        done = state["done"]
        optimizer.restore(state["optimizer"])
        rows = list(csv.reader(log.read_text(encoding="utf-8").splitlines()))[: done + 1]
    for number, ((_, scene), visual) in enumerate(zip(scenes, seen, strict=True)):
        if number < done:
            continue
        loss, right = learn(student, optimizer, scene, visual, going, number)
        rows.append([number + 1, round(loss, 4), sum(right), len(right)])
        with log.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        progress(number + 1, f"loss {loss:.3f}")
        if (number + 1) % save_every == 0 or number + 1 == going.dialogues:
            student.save(folder / str(number + 1))
            torch.save({"done": number + 1, "optimizer": optimizer.state()}, folder / "resume.partial")
            (folder / "resume.partial").rename(resume)
    return folder


@torch.inference_mode()
def ask_cut(
    going: Going, method: Method | None, trained: Path, split: TaskSplit, scenes: int, target: Path
) -> dict[str, list[bool]]:
    """Whether each question of a split is answered exactly, with the tokens that a method keeps.

    Questions about a picture share a pass in which none sees another, as in training.

    Args:
        going, method: see :func:`train_cut`.
        trained: a folder with weights.
        split: what is asked.
        scenes: so many of its scenes, evenly spread.
        target: a JSON file with the answers; read where it is there.
    """
    if target.exists():
        stored: dict[str, list[bool]] = json.loads(target.read_text(encoding="utf-8"))
        return stored
    step = len(split.scenes) / scenes
    chosen = [split.scenes[int(number * step)] for number in range(scenes)]
    kept = going.seen(method, f"{split.name}-{scenes}")
    student = Student(going.workspace)
    student.load(trained)
    student.eval()
    results: dict[str, list[bool]] = {}
    for scene, visual in zip(chosen, see(going.loaded, method, (one.picture() for one in chosen), kept), strict=True):
        asked: list[TaskQuestion] = [question for question in scene.questions if question.task != "read"]
        if not asked:
            continue
        packed = student.packer.pack(asked, visual.positions)
        logits, wanted = student.logits(packed, visual.projected)
        branch = packed.branch[packed.labels != -100]
        for task, right in answered(packed, logits.argmax(dim=-1) == wanted, branch).items():
            results.setdefault(task, []).extend(right)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results) + "\n", encoding="utf-8")
    return results


def time_cut(going: Going, methods: list[Method | None], steps: int) -> dict[str, list[tuple[float, float]]]:
    """CPU seconds of an update, of tower and projector and of the language model, for each method.

    All take turns with every dialogue; the first one warms up and does not count.

    Args:
        going: see :class:`Going`.
        methods: whose updates are timed; ``None`` for all tokens.
        steps: updates of each that count.
    """
    student, optimizer = learner(going)
    seconds: dict[str, list[tuple[float, float]]] = {name_of(method): [] for method in methods}
    for number, (picture, scene) in enumerate(training_scenes(going.workspace, steps + 1, going.seed)):
        pixels = pixels_of(going.loaded, picture)
        for method in methods:
            visual, tower = encoded(going.loaded, method, pixels)
            visual = Seen(visual.projected.clone(), visual.positions)
            started = time.process_time()
            learn(student, optimizer, scene, visual, going, number)
            if number:
                seconds[name_of(method)].append((round(tower, 4), round(time.process_time() - started, 4)))
    return seconds
