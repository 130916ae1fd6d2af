"""The command ``flowcut bench``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape

from .eval import rows_wanted
from .options import (
    DEFAULT_MODEL,
    DEFAULT_TARGET,
    DeviceOption,
    DtypeOption,
    JsonOption,
    RunOptions,
    numbers,
    opened_model,
    printable,
    progress_bar,
    quiet_libraries,
    recalled,
    user_errors,
    warn_of_budget,
)
from .server_load import Rounds, load_servers
from .tables import plain_table

if TYPE_CHECKING:
    from torch import nn

    from ..measure.bench import Inputs
    from ..measure.cases import Case

RANDOM = "random:"


def bench_command(
    model: Annotated[
        str,
        typer.Option(
            help="flowcut-mini, a folder or a hub id; or random:FAMILY, a family at the widths of a real checkpoint "
            "with random weights (random:llava is LLaVA-1.5-7B)."
        ),
    ] = DEFAULT_MODEL,
    image: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A picture; by default one that ships with flowcut, or random pixels.", show_default=False),
    ] = None,
    question: Annotated[str, typer.Option(help="What is asked.")] = "What is shown here?",
    methods: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Names separated by commas, settings in brackets; the uncut model is always measured. By default "
            "what the checkpoint was trained with, else flowcut.",
            show_default=False,
        ),
    ] = None,
    target_num: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Budgets, separated by commas; by default the one the checkpoint was trained with, else 64.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that every sample generates.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, behind one to warm up.")] = 5,
    attention: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="sdpa, eager, ...; by default the model's own.", show_default=False),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Also measure a tower under torch.compile, of the uncut model and of FlowCut with a fixed schedule; "
            "each on a copy of the model.",
        ),
    ] = False,
    decoder_layers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Of random:FAMILY, instead of the few that a CPU can repeat.", show_default=False),
    ] = None,
    clock: Annotated[
        str, typer.Option(help="wall; or process: CPU seconds of this program, on a busy machine without a GPU.")
    ] = "wall",
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="CPU threads; by default torch's own choice.", show_default=False),
    ] = None,
    server: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Measure running OpenAI-compatible servers instead (`flowcut serve`), such as http://localhost:8000; "
            "may be repeated, they are asked in turns.",
            show_default=False,
        ),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Requests in flight on a server.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests to a server in every round.")] = 32,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for bench.json, bench.md and bench.png; of servers, load.json.", show_default=False),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what methods gain on this machine: seconds, memory, kernels and waits, against the uncut model."""
    options = RunOptions(model, device=device, dtype=dtype, as_json=as_json)
    if server:
        load_servers(server, image, question, Rounds(clients, requests, rounds, new_tokens), output, options)
        return
    with user_errors():
        with quiet_libraries(options.errors):
            import torch

            from ..measure.bench import CLOCKS, Bench
            from ..measure.cases import cases_of, uncut_of
            from ..methods import make_methods

            if clock not in CLOCKS:
                raise ValueError(f"--clock takes {' or '.join(CLOCKS)}, got {clock!r}.")
            sizes = numbers("--batch-size", batch_size)
            if target_num is not None:
                numbers("--target-num", target_num)
            if threads is not None:
                torch.set_num_threads(threads)
            memory = None if model.startswith(RANDOM) else recalled(model, options.errors)
            named, budgets = rows_wanted(methods, target_num, memory, str(DEFAULT_TARGET))
            chosen = ",".join(one for one in named.split(",") if one.strip() != "none")
            cases = cases_of(
                lambda budget: make_methods(chosen, budget) if chosen else [], budgets, sizes, compiled=compiled
            )
            warn_of_budget(memory, [case.method for case in cases if case.method is not None], options.errors)
        with subject(options, image, question, attention, decoder_layers) as (network, inputs, told):
            if clock == "process" and told["device"] != "cpu":
                raise ValueError(f"--clock process is for the CPU alone; the model is on {told['device']}.")
            with progress_bar(options.errors, disable=as_json) as bar:
                task = bar.add_task("Measuring", total=len(cases) * (rounds + 1))
                bench = Bench(network, inputs, new_tokens, rounds, clock, lambda: bar.advance(task))
                bench.run(cases)
            told |= {"clock": clock, "rounds": rounds, "new_tokens": new_tokens, "threads": torch.get_num_threads()}
            report = {**told, "cases": [case.as_dict(uncut_of(case, cases)) for case in cases]}
            if output is not None:
                write(output, report, cases, title(told))
    if as_json:
        typer.echo(json.dumps(report))
        return
    show(Console(), cases, title(told))
    if output is not None:
        Console(soft_wrap=True).print(f"Written to {printable(output)}: bench.json, bench.md, bench.png")


@contextlib.contextmanager
def subject(
    options: RunOptions, image: str | None, question: str, attention: str | None, decoder_layers: int | None
) -> Iterator[tuple[nn.Module, Inputs, dict[str, Any]]]:
    """What is measured: the model, its batches, and what there is to tell about both."""
    if options.model.startswith(RANDOM):
        with options.errors.status("Making a model ...") as status, quiet_libraries(options.errors):
            from ..measure.subjects import environment, random_model

            if image is not None:
                raise ValueError(f"{options.model} takes random pixels; leave --image out.")
            name = options.model.removeprefix(RANDOM)
            network, inputs, told = random_model(name, decoder_layers, attention, options.device, options.dtype)
            status.stop()
            yield network, inputs, {"model": told, **environment(network)}
        return
    if decoder_layers is not None:
        raise ValueError("--decoder-layers is for random:FAMILY; a checkpoint has its own.")
    with opened_model(options) as (loaded, status):
        from ..inputs.pictures import load_image
        from ..measure.subjects import asked, environment

        if image is None:
            from ..tasks.demo import demo_scene

            picture = demo_scene()[0].picture()
        else:
            picture = load_image(image)
        if attention is not None:
            loaded.model.set_attn_implementation(attention)
        status.stop()
        yield loaded.model, asked(loaded, picture, question), {"model": options.model, **environment(loaded.model)}


def title(told: dict[str, Any]) -> str:
    """One line on what was measured where."""
    return (
        f"{told['model']}, {told['dtype']}, {told['attention']} attention, "
        f"{'compiled choices (counted uncompiled), ' if told['compiled_choices'] else ''}{told['hardware']}, "
        f"{told['threads']} thread(s), {told['clock']} clock, {told['rounds']} rounds, "
        f"{told['new_tokens']} new tokens, torch {told['torch']}, transformers {told['transformers']}"
    )


def show(console: Console, cases: list[Case], heading: str) -> None:
    """Print two tables that fit into a terminal, what the clock showed and what was counted, and what was refused."""
    from ..view.benchmark import COUNTED, TIMED, cells

    console.print(escape(heading))
    console.print()
    several = len({case.batch_size for case in cases}) > 1
    for columns in (TIMED, COUNTED):
        shown = [column for column in columns if column != "batch" or several]
        table = plain_table(left=shown[:1], right=shown[1:])
        for case in cases:
            if not case.refusal:
                row = cells(case, cases, spread=False)
                table.add_row(*(escape(row[column]) for column in shown))
        console.print(table)
        console.print()
    for refused in dict.fromkeys(f"{case.label}: {case.refusal}" for case in cases if case.refusal):
        console.print(escape(refused))
    console.print("Milliseconds, in brackets of the uncut model's; how they spread: bench.md, which --output writes.")


def write(folder: Path, report: dict[str, Any], cases: list[Case], heading: str) -> None:
    """Write all three forms."""
    from ..view.benchmark import as_markdown, save_figure

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(f"{heading}\n\n{as_markdown(cases)}", encoding="utf-8")
    save_figure(folder / "bench.png", cases, heading)
