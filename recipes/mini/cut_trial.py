"""The whole trial of what training with cutting wins back, and the file that its table and its curve are made of."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from flowcut import Method
from flowcut.checkpoints.loading import load_model
from flowcut.methods import make_method
from flowcut.tasks import load_split

from .cut import Going, ask_cut, name_of, time_cut, train_cut
from .workspace import Workspace

BEFORE = "before"
TIMED = 4
"""Updates of each that are timed."""


def run_cut(
    workspace: Workspace,
    names: list[str],
    dialogues: int,
    scenes: int,
    seed: int,
    every: int,
    start_from: Path,
    console: Console,
    target: Path,
) -> None:
    """Train with every method; ask before, on the way and after with its tokens, and after training uncut with all.

    The weights before are asked with all tokens too: that is what can be won back.

    Args:
        workspace: of the recipe.
        names: methods with budgets as text, or ``uncut``.
        dialogues: of each.
        scenes: of the test split.
        seed: of the dialogues.
        every: dialogues between weights that are kept and asked.
        start_from: the weights before.
        console: where it is told.
        target: the JSON file that is written, as far as it goes; those of other seeds or numbers of scenes in it stay.
    """
    going = Going(workspace, load_model("flowcut-mini", "cpu"), dialogues, start_from, seed)
    split = load_split()
    methods = [None if name == "uncut" else make_method(name) for name in names]
    cutting = [method for method in methods if method is not None]
    told: dict[str, Any] = {
        "split": split.name,
        "scenes": scenes,
        "dialogues": dialogues,
        "answers": [],
        "logs": {},
        "seconds": {},
    }

    def write() -> None:
        stored = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            json.dumps({**stored, f"seed {seed}, {scenes} scenes": told}, indent=1) + "\n", encoding="utf-8"
        )

    def asked(method: Method | None, trained: Path, weights: str, done: int) -> None:
        label = weights if done == 0 else f"{weights}-seed-{seed}-{done}"
        path = going.root / f"{split.name}-{scenes}" / f"{label}--{name_of(method)}.json"
        results = ask_cut(going, method, trained, split, scenes, path)
        right = [one for task in results.values() for one in task]
        console.print(f"weights {label}, tokens {name_of(method)}: {sum(right)} of {len(right)} right")
        hits = {task: "".join(str(int(one)) for one in some) for task, some in results.items()}
        told["answers"].append({"weights": weights, "dialogues": done, "tokens": name_of(method), "right": hits})
        write()

    asked(None, start_from, BEFORE, 0)
    for method in methods:
        name = name_of(method)
        if method is not None:
            asked(method, start_from, BEFORE, 0)
        folder = train_cut(
            going,
            method,
            save_every=every,
            progress=lambda done, line, name=name: console.print(f"{name}: {done} of {dialogues}, {line}"),
        )
        told["logs"][name] = list(csv.DictReader((folder / "log.csv").open(encoding="utf-8")))
        for done in range(every, dialogues + 1, every) if method is not None else [dialogues]:
            for tested in [method] if method is not None else [*cutting, None]:
                asked(tested, folder / str(done), name, done)
    timed = going.root / f"seconds-seed-{seed}.json"
    if not timed.exists():
        timed.write_text(json.dumps(time_cut(going, methods, TIMED)), encoding="utf-8")
    told["seconds"] = json.loads(timed.read_text(encoding="utf-8"))
    write()
