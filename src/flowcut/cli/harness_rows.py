"""``flowcut eval --harness lmms-eval``: its options, its rows one after the other, its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .options import DEFAULT_MODEL, prepare_mini, printable, progress_bar

if TYPE_CHECKING:
    from ..harness.gathering import GatheredRow
    from ..harness.rows import HarnessRow

HARNESS = "lmms-eval"


def check_harness_options(harness: str, tasks: str, unread: list[str]) -> None:
    """Refuse what the harness can't do.

    Args:
        harness: the one asked for.
        tasks: ``--tasks``.
        unread: options given that are for the built-in tasks.

    Raises:
        ValueError: another harness, no tasks named, or such an option; or lmms-eval is not installed.
    """
    from ..harness.rows import check_harness

    if harness != HARNESS:
        raise ValueError(f"--harness knows {HARNESS}; got {harness!r}.")
    if tasks == "all":
        raise ValueError(f"--harness {HARNESS} needs --tasks NAME,NAME, tasks of lmms-eval, such as pope,gqa.")
    if unread:
        raise ValueError(
            f"{', '.join(unread)}: for the built-in tasks only. With --harness, a method's positions stand in "
            "brackets: flowcut(positions=original); flowcut export-tasks writes the built-in tasks for it."
        )
    check_harness()


def check_harness_only(
    wrapped: str | None, processes: int, include_path: Path | None, model_args: str, force_simple: bool
) -> None:
    """Refuse options of the harness where there is none.

    Raises:
        ValueError: names them.
    """
    given = {
        "--wrapped": wrapped,
        "--processes": processes > 1,
        "--include-path": include_path,
        "--model-args": model_args,
        "--force-simple": force_simple,
    }
    names = [name for name, value in given.items() if value]
    if names:
        raise ValueError(f"{', '.join(names)}: only with --harness {HARNESS}.")


def checkpoint_of(model: str, errors: Console) -> str:
    """The model as the harness's processes find it: flowcut-mini by the folder of its weights."""
    if model != DEFAULT_MODEL:
        return model
    prepare_mini(errors)
    from ..checkpoints.mini import mini_folder

    return str(mini_folder())


def run_harness_rows(rows: list[HarnessRow], output: Path, processes: int, errors: Console, *, as_json: bool) -> None:
    """Run what is not finished yet, write and print the tables of all that is.

    Args:
        rows: the uncut model first.
        output: the table's folder.
        processes: how many share a row's questions.
        errors: where everything but the result is printed.
        as_json: whether to print JSON.

    Raises:
        Exit: 1, where a row did not come to its end.
    """
    from ..harness.running import RowFailed, is_done, run_in_processes

    failed = []
    with progress_bar(errors) as bar:
        whole = bar.add_task("Rows", total=len(rows))
        for row in rows:
            if not is_done(row, output):
                task = bar.add_task(f"{escape(row.label)}: answers", total=None)

                def report(done: int, of: int, task: Any = task) -> None:
                    bar.update(task, completed=done, total=of or None)

                try:
                    run_in_processes(row, output, processes, report)
                except RowFailed as error:
                    failed.append(row.label)
                    errors.print(f"[bold red]{escape(row.label)}:[/] [red]{printable(str(error))}[/]", soft_wrap=True)
            bar.advance(whole)
    finished = [row for row in rows if is_done(row, output)]
    if rows[0] in finished:
        write_tables(finished, output, as_json=as_json)
    if failed:
        errors.print(f"[bold red]Not finished:[/] {escape(', '.join(failed))}", soft_wrap=True)
        raise typer.Exit(1)


def write_tables(rows: list[HarnessRow], output: Path, *, as_json: bool) -> None:
    """Gather the rows' files, write the tables and print them."""
    from ..harness.gathering import compared, figures, read_gathered, save_gathered, table_of
    from ..measure.efficiency_report import write_reports
    from ..view.efficiency import save_efficiency

    found = compared([read_gathered(row, output) for row in rows])
    settings = rows[0].identity["settings"]
    identity = {**settings, "flowcut": rows[0].versions[0], HARNESS: rows[0].versions[1]}
    paths = save_gathered(output, identity, found)
    reports = {one.label: one.efficiency for one in found if one.efficiency is not None}
    if reports:
        stem = "harness-efficiency"  # the built-in tasks have theirs in the same folder
        paths += [write_reports(output, reports, f"{stem}.json"), save_efficiency(output, reports, f"{stem}.md")]
    if as_json:
        typer.echo(json.dumps({**identity, "rows": figures(found), "efficiency": reports}))
        return
    print_gathered(found, table_of(found))
    Console(soft_wrap=True).print("Written: " + ", ".join(printable(path) for path in paths))


def print_gathered(found: list[GatheredRow], shown: tuple[list[str], list[list[str]]]) -> None:
    """Print the table of scores."""
    table = Table(caption=f"Differences to {found[0].label} in points, with paired 95% intervals.")
    for heading in shown[0]:
        table.add_column(heading.replace(" ", "\n", 1), overflow="fold")
    for cells in shown[1]:
        table.add_row(*(escape(cell.replace(" (", "\n(")) for cell in cells))
    Console().print(table)
