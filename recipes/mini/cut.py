"""Goes on with the last phase of training on the tokens that a method keeps: what does training with cutting win back?

Tower and projector stay as they are, so what a method keeps of a picture never changes: it is worked out once, by
flowcut-mini with the method attached. The language model's adapters then learn from the same dialogues, in the same
order, at the same rate, for every method.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowcut import Method, attach
from flowcut.attaching import patches_of
from flowcut.checkpoints.loading import LoadedModel, load_model
from flowcut.methods import make_method
from flowcut.methods.naming import describe
from flowcut.models import find_parts
from flowcut.tasks import TaskQuestion, TaskSplit, load_split

from .curriculum import chosen_questions, question_weights
from .material import Material
from .questions import ask
from .render import render
from .scene import Scene
from .student import Student, answered
from .train import HalfPrecisionAdam, rate_factor
from .workspace import Workspace

FIRST = 41_000
"""Number of the first training scene: behind all that flowcut-mini has seen."""

OTHERS = 5
"""Most questions of a dialogue that don't ask for numbers, as in the last stage."""

RATE, FINAL_SHARE, SEED = 3e-4, 0.05, 33


@dataclass(frozen=True)
class Seen:
    """What the language model gets of one picture.

    Attributes:
        projected: ``[n, 576]``, its tokens.
        positions: ``[n]``, their positions, from 0.
        seconds: what tower and projector took.
    """

    projected: Tensor
    positions: Tensor
    seconds: float


def name_of(method: Method | None) -> str:
    """A method's name for files: ``flowcut-64``, or ``uncut``."""
    if method is None:
        return "uncut"
    settings = "".join(one if one.isalnum() else "-" for one in describe(method)).strip("-")
    return f"{settings}-{method.target_num}"


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
            pixels = loaded.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
            save_file(encoded(loaded, method, pixels), path)
        stored = load_file(path)
        yield Seen(stored["projected"].float(), stored["positions"], float(stored["seconds"]))


@torch.inference_mode()
def encoded(loaded: LoadedModel, method: Method | None, pixels: Tensor) -> dict[str, Tensor]:
    """The kept tokens of one picture behind the projector, their positions, and the seconds that took."""
    base, done = loaded.model.model, []
    hook = base.multi_modal_projector.register_forward_hook(
        lambda module, given, output: done.append((output, time.process_time()))
    )
    started = time.process_time()
    try:
        if method is None or method.positions == "compact":
            with nullcontext() if method is None else attach(loaded.model, method):
                base.get_image_features(pixels)
            positions = torch.arange(done[0][0].shape[-2])
        else:
            with attach(loaded.model, method) as handle:
                patches = patches_of(find_parts(loaded.model)[1])
                base(input_ids=torch.full((1, patches), base.config.image_token_id), pixel_values=pixels)
            positions = handle.trace.images[0].kept
    finally:
        hook.remove()
    projected, ended = done[0]
    return {
        "projected": projected.reshape(len(positions), -1).half().contiguous(),
        "positions": positions.contiguous(),
        "seconds": torch.tensor([ended - started]),
    }


def training_scenes(workspace: Workspace, count: int) -> list[tuple[Image.Image, Scene]]:
    """``count`` scenes that show something twice or oftener, from number ``FIRST`` on."""
    material = Material(workspace)
    chosen: list[tuple[Image.Image, Scene]] = []
    number = FIRST
    while len(chosen) < count:
        picture, scene = render(material, "train", number)
        questions = ask(scene, np.random.default_rng(number))
        if max((int(one.answer) for one in questions if one.task == "count"), default=0) > 1:
            chosen.append((picture, scene))
        number += 1
    return chosen


def train_cut(
    workspace: Workspace,
    loaded: LoadedModel,
    method: Method | None,
    dialogues: int,
    *,
    start_from: Path,
    save_every: int,
    progress: Callable[[int, str], None],
) -> Path:
    """Train adapters on what a method keeps, or go on where it was interrupted.

    Args:
        workspace: of the recipe.
        loaded: flowcut-mini, for its tower.
        method: what cuts; ``None`` for all tokens.
        dialogues: one for each scene; an update follows each.
        start_from: a folder with weights (`Student.save`).
        save_every: dialogues between weights that are kept.
        progress: called with the number of dialogues and a line about them.

    Returns:
        the folder, with ``log.csv`` and, below it, a folder of weights for each number of dialogues.
    """
    folder = workspace.training / "cut" / name_of(method)
    folder.mkdir(parents=True, exist_ok=True)
    scenes = training_scenes(workspace, dialogues)
    seen = see(loaded, method, (picture for picture, _ in scenes), folder / "train")
    torch.manual_seed(SEED)
    student = Student(workspace)
    student.load(start_from)
    student.train()
    student.projector.requires_grad_(False)
    optimizer = HalfPrecisionAdam([(student.adapters(), RATE)])
    resume, log, done = folder / "resume.pt", folder / "log.csv", 0
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        done = state["done"]
        optimizer.restore(state["optimizer"])
    else:
        log.write_text("dialogue,loss,right,questions,seconds,tower_seconds\n", encoding="utf-8")
    for number, ((_, scene), visual) in enumerate(zip(scenes, seen, strict=True)):
        if number < done:
            continue
        random = np.random.default_rng((SEED, number))
        questions = chosen_questions(scene, random, OTHERS)
        packed = student.packer.pack(questions, visual.positions, random)
        started = time.process_time()
        nothing = torch.zeros(len(questions), len(visual.positions))
        loss, answers = student.loss(packed, visual.projected, nothing, 0.0, question_weights(scene, questions))
        loss.backward()
        optimizer.step(rate_factor((number + 1) / dialogues, FINAL_SHARE, float(number + 1)))
        seconds = time.process_time() - started
        results = [one for task in answers.values() for one in task]
        row = [number + 1, round(loss.item(), 4), sum(results), len(results), round(seconds, 3)]
        with log.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([*row, round(visual.seconds, 3)])
        progress(number + 1, f"loss {loss.item():.3f}")
        if (number + 1) % save_every == 0 or number + 1 == dialogues:
            student.save(folder / str(number + 1))
            torch.save({"done": number + 1, "optimizer": optimizer.state()}, folder / "resume.partial")
            (folder / "resume.partial").rename(resume)
    return folder


@torch.inference_mode()
def ask_cut(
    workspace: Workspace,
    loaded: LoadedModel,
    method: Method | None,
    trained: Path,
    split: TaskSplit,
    scenes: int,
    target: Path,
) -> dict[str, list[bool]]:
    """Whether each question of a split is answered exactly, with the tokens that a method keeps.

    Questions about a picture share a pass in which none sees another, as in training.

    Args:
        workspace, loaded, method: see :func:`train_cut`.
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
    folder = workspace.training / "cut" / name_of(method) / f"{split.name}-{scenes}"
    student = Student(workspace)
    student.load(trained)
    student.eval()
    results: dict[str, list[bool]] = {}
    for scene, visual in zip(chosen, see(loaded, method, (one.picture() for one in chosen), folder), strict=True):
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


def run_cut(
    workspace: Workspace, names: list[str], dialogues: int, scenes: int, start_from: Path, console: Console
) -> None:
    """Train with every method, ask before and after with each, and with the weights trained on all tokens.

    Args:
        workspace: of the recipe.
        names: methods with budgets as text, or ``uncut``.
        dialogues: of each.
        scenes: of the test split.
        start_from: the weights before.
        console: where it is told.
    """
    loaded, split = load_model("flowcut-mini", "cpu"), load_split()
    methods = [None if name == "uncut" else make_method(name) for name in names]
    answers = workspace.training / "cut" / "answers"

    def asked(method: Method | None, trained: Path, label: str) -> None:
        target = answers / f"{label}--{name_of(method)}.json"
        results = ask_cut(workspace, loaded, method, trained, split, scenes, target)
        right = [one for task in results.values() for one in task]
        console.print(f"weights {label}, tokens {name_of(method)}: {sum(right)} of {len(right)} right")

    cutting = [method for method in methods if method is not None]
    for method in cutting:
        asked(method, start_from, "before")
    for method in methods:
        name = name_of(method)
        folder = train_cut(
            workspace,
            loaded,
            method,
            dialogues,
            start_from=start_from,
            save_every=max(1, dialogues // 4),
            progress=lambda done, line, name=name: console.print(f"{name}: {done} of {dialogues}, {line}"),
        )
        for tested in cutting if method is None else [method]:
            asked(tested, folder / str(dialogues), f"{name}-{dialogues}")
    if None in methods:
        asked(None, start_from, "before")
        asked(None, workspace.training / "cut" / "uncut" / str(dialogues), f"uncut-{dialogues}")
    for method in methods:
        steps = sorted(int(path.name) for path in (workspace.training / "cut" / name_of(method)).glob("[0-9]*"))
        for step in steps[:-1]:
            for tested in cutting if method is None else [method]:
                asked(tested, workspace.training / "cut" / name_of(method) / str(step), f"{name_of(method)}-{step}")
