"""The paper's tables: ``python -m recipes.paper --help``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flowcut.cli.options import prepare_mini, printable, quiet_transformers, user_errors
from flowcut.tasks import load_split

from .local import write_local
from .measure import Settings, measure
from .report import cell_of, incomparable, write_report
from .tables import TITLES, read_table

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console(soft_wrap=True)


@app.command("tables")
def tables_command() -> None:
    """List the tables."""
    for name, (title, models) in TITLES.items():
        console.print(f"{name:6}  {title} ({models[0]})")


@app.command("table")
def table_command(
    name: Annotated[str, typer.Argument(help="Such as 1; `tables` lists them.")],
    model: Annotated[str | None, typer.Option(help="By default the table's own.")] = None,
    data: Annotated[Path, typer.Option(help="The benchmarks, in LLaVA's layout.")] = Path("playground/data/eval"),
    output: Annotated[Path | None, typer.Option(help="By default runs/paper/table-NAME.")] = None,
    rows: Annotated[str, typer.Option(help="Only rows whose names begin so, separated by commas.")] = "",
    benchmarks: Annotated[str, typer.Option(help="Only these, separated by commas.")] = "",
    flowcut: Annotated[str, typer.Option(help="What stands for FlowCut with its defaults.")] = "flowcut",
    conv_mode: Annotated[str | None, typer.Option(help="vicuna_v1 or model; by default the table's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions in one pass.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="How many share the questions, a GPU each.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many of each file's first questions.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="By default each benchmark's own.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
) -> None:
    """Measure a table and write it beside the published figures. What is answered already is not asked again."""
    with user_errors():
        table = read_table(name)
        chosen = model or table.models[0]
        if chosen == "flowcut-mini":
            prepare_mini(Console(stderr=True))
        quiet_transformers()
        place = output or Path("runs/paper") / f"table-{name}"
        mode = conv_mode or ("model" if name in ("3", "4") else "vicuna_v1")
        settings = Settings(
            model=chosen,
            data=data,
            output=place,
            flowcut=flowcut,
            benchmarks=tuple(filter(None, benchmarks.split(","))),
            rows=tuple(filter(None, rows.split(","))),
            mode=mode,
            batch_size=batch_size,
            processes=processes,
            limit=limit,
            max_new_tokens=max_new_tokens,
            device=device,
            dtype=dtype,
        )
        measured = measure(table, settings, lambda line: console.print(printable(line)))
        paths = write_report(name, table, measured, chosen, limit is not None, place)
    why_not = incomparable(table, chosen, limit is not None)
    marks = Counter(
        cell_of(column, row.figures.get(column), measured.figures.get(row.name, {}).get(column), why_not).mark
        for row in table.rows
        for column in table.columns
    )
    console.print(", ".join(f"{count} {mark}" for mark, count in marks.items() if mark))
    console.print("Written: " + ", ".join(printable(path) for path in paths))
    for problem in measured.problems:
        console.print(f"[yellow]{printable(problem)}[/]")
    if measured.problems:
        raise typer.Exit(1)


@app.command("local-data")
def local_data_command(
    folder: Path,
    split: Annotated[str, typer.Option(help="test-v1, new-v1 or photo-v2.")] = "test-v1",
    limit: Annotated[int, typer.Option(min=1, help="At most so many questions a benchmark.")] = 300,
) -> None:
    """Write the built-in questions as POPE's, TextVQA's and GQA's files, to try a table without downloads."""
    for name, count in write_local(load_split(split), folder, limit).items():
        console.print(f"{name}: {count} questions")


if __name__ == "__main__":
    app()
