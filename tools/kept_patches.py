"""Which patches FlowCut and random cutting keep of the scenes that ``docs/measured/budgets`` asks about.

    python tools/kept_patches.py          runs flowcut-mini and writes docs/measured/budgets/kept.json.gz

:mod:`kept_tables` makes a table of them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from measured import FOLDER, load

from flowcut import attach
from flowcut.checkpoints.loading import LoadedModel, load_model
from flowcut.cli.eval import checkpoint_name
from flowcut.methods import make_method
from flowcut.tasks.answering import inputs_on
from flowcut.tasks.asking import Asked
from flowcut.tasks.evaluation import choose_questions
from flowcut.tasks.split import load_split

FILE = FOLDER / "budgets" / "kept.json.gz"
METHODS = ("flowcut", "random")
BUDGET = 64


@lru_cache
def asked_scenes() -> Asked:
    """The scenes of the table ``budgets`` and the questions about them, in the order of the answers."""
    identity = load("budgets")[0]
    tasks = identity["tasks"].split(",")
    return choose_questions(load_split(identity["split"]), tasks, identity["limit"], identity["per_task"])


@torch.inference_mode()
def kept_patches(loaded: LoadedModel, method: str, asked: Iterable[Any]) -> dict[int, list[int]]:
    """The patches that are kept of every scene, ascending, row by row, by the scene's number in its split."""
    kept = {}
    with attach(loaded.model, make_method(method, BUDGET)) as handle:
        for number, scene, questions in asked:
            inputs = inputs_on(loaded, scene.picture(), [questions[0].text])
            handle.model(**inputs, logits_to_keep=1)
            kept[number] = handle.trace.images[0].kept.tolist()
    return kept


def write(path: Path, model: str, kept: dict[str, dict[int, list[int]]]) -> None:
    """Keep the patches; the same give the same bytes."""
    text = json.dumps({"model": model, "target_num": BUDGET, "kept": kept}, separators=(",", ":"))
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        file.write(text.encode("utf-8"))


@lru_cache
def read(path: Path = FILE) -> dict[str, dict[int, Sequence[int]]]:
    """For each method, what :func:`kept_patches` gave."""
    stored = json.loads(gzip.decompress(path.read_bytes()))["kept"]
    return {method: {int(number): patches for number, patches in scenes.items()} for method, scenes in stored.items()}


def main() -> None:
    """The command line."""
    loaded = load_model("flowcut-mini", "cpu", "float32")
    asked = asked_scenes()
    write(FILE, checkpoint_name("flowcut-mini"), {method: kept_patches(loaded, method, asked) for method in METHODS})


if __name__ == "__main__":
    main()
