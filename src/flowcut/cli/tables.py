"""The tables that the commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..measure.compare import Comparison
    from ..measure.run import Outcome, RunResult


def plain_table(*, left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """A table whose columns need little room: words, which fold, at the left, and numbers at the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, collapse_padding=True)
    for heading in left:
        table.add_column(heading, overflow="fold", min_width=8)
    for heading in right:
        table.add_column(heading, overflow="fold", justify="right")
    return table


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return escape("\n".join(f"{key} = {setting}" for key, setting in value.items()))
    if isinstance(value, list):
        return escape("\n".join(value))
    return escape(str(value))


def print_method(console: Console, told: dict[str, Any]) -> None:
    """Print what ``flowcut methods NAME`` tells."""
    from ..methods.settings import written_value

    console.print(f"[bold cyan]{escape(told['name'])}[/]: {escape(told['summary'])}")
    console.print(f"Cuts: {escape(told['stage'])}")
    console.print(f"Paper: {escape(told['paper']) or 'none'}")
    if told["needs"]:
        console.print(f"Needs: {escape(', '.join(told['needs']))}")
    table = Table(show_lines=True)
    for heading, style in (("setting", "bold cyan"), ("values", None), ("default", None), ("meaning", None)):
        table.add_column(heading, style=style, overflow="fold")
    for setting in told["settings"]:
        table.add_row(
            escape(setting["name"]),
            escape(setting["values"]),
            escape(written_value(setting["default"])),
            escape(setting["meaning"]),
        )
    console.print(table)
    console.print(
        f"Set them with --set NAME=VALUE, or in brackets where methods are listed: "
        f"{escape(told['name'])}(NAME=VALUE,NAME=VALUE)."
    )


def print_result(console: Console, result: RunResult) -> None:
    """Print both answers and the table of costs."""
    from ..methods.naming import describe

    method = escape(describe(result.method))
    console.print(f"[bold]{escape(result.question)}[/]")
    for name, side in (("uncut", result.uncut), (method, result.cut)):
        answer = escape(side.answer) or "[dim](no text)[/]"
        console.print(f"[cyan]{name}[/] [dim]({side.visual_tokens} visual tokens)[/]: {answer}")
    table = Table(caption=f"Times are medians of {result.repeats} run(s) each; FLOPs are counted.")
    table.add_column("")
    for heading in ("uncut", on_lines(method), "of uncut"):
        table.add_column(heading, justify="right")
    for group in zip(cost_rows(result.uncut), cost_rows(result.cut), strict=True):
        for (label, before, unit), (_, after, _) in zip(*group, strict=True):
            share = f"{after / before:.0%}" if before else "-"
            table.add_row(label, amount(before, unit), amount(after, unit), share)
        table.add_section()
    console.print(table)
    before, after = result.uncut.seconds.prefill, result.cut.seconds.prefill
    console.print(f"Prefill: {before:.2f} s uncut, {after:.2f} s cut, [bold]{before / after:.1f} times as fast[/].")


def print_comparison(console: Console, result: Comparison) -> None:
    """Print the table of methods."""
    from ..methods.naming import describe

    console.print(f"[bold]{escape(result.question)}[/]")
    table = plain_table(
        left=("method", "answer"), right=("tokens", "kv entries", "FLOPs", "tower", "prefill", "decoding")
    )
    refused = []
    for name, side, refusal in [
        ("uncut", result.uncut, ""),
        *((describe(row.method), row.outcome, row.refusal) for row in result.rows),
    ]:
        if side is None:
            refused.append(f"{name}: {refusal}")
            continue
        table.add_row(
            escape(on_lines(name)),
            escape(side.answer) or "[dim](no text)[/]",
            f"{side.visual_tokens} / {amount(side.visual_tokens_mean, '')}",
            amount(side.kv_entries, ""),
            amount(side.flops.total, "FLOP"),
            *(amount(time, "s") for time in (side.seconds.tower, side.seconds.prefill, side.seconds.decoding)),
        )
    console.print(table)
    for reason in refused:
        console.print(f"[yellow]refused:[/] {escape(reason)}")
    console.print(
        f"Tokens are visual tokens: into the language model / mean over its layers. Times are medians of "
        f"{result.repeats} run(s); FLOPs (tower, projector, prefill) are counted."
    )


def print_tables(console: Console, header: list[str], rows: list[list[str]]) -> None:
    """Print costs and accuracies, one below the other so that both fit into a terminal."""
    from ..view.report import COLUMNS

    named = 3  # method, positions and tokens stand in both
    tasks = slice(len(COLUMNS) - 2, None)
    for columns in (slice(named, len(COLUMNS) - 2), tasks):
        table = Table()
        for heading in (*header[:named], *header[columns]):
            table.add_column(heading.replace(" (", "\n("), overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell.replace(" (", "\n(")) for cell in (*row[:named], *row[columns])))
        console.print(table)
    console.print("Accuracy in %, in brackets 95% intervals; table.md says what the columns mean.")


def on_lines(expression: str) -> str:
    """A method's name, and each of its settings on a line of its own."""
    return expression.replace("(", "\n(", 1).replace(",", ",\n ")


def cost_rows(side: Outcome) -> list[list[tuple[str, float, str]]]:
    """Label, amount and unit of every row, in groups."""
    seconds, flops = side.seconds, side.flops
    return [
        [
            ("visual tokens into the language model", side.visual_tokens, ""),
            ("visual tokens, mean over its layers", side.visual_tokens_mean, ""),
            ("key/value entries after prefill", side.kv_entries, ""),
        ],
        [
            ("FLOPs of the vision tower", flops.tower, "FLOP"),
            ("FLOPs of projector and prefill", flops.projector + flops.prefill, "FLOP"),
        ],
        [
            ("time in the vision tower", seconds.tower, "s"),
            ("time of prefill", seconds.prefill, "s"),
            ("time of decoding", seconds.decoding, "s"),
            ("time for the rest", seconds.rest, "s"),
            ("time in all", seconds.total, "s"),
        ],
        [
            ("tokens generated", side.new_tokens, ""),
            ("time of decoding, per token", seconds.decoding / max(1, side.new_tokens - 1), "s"),
        ],
    ]


def amount(value: float, unit: str) -> str:
    """A number with its unit, at a precision that can be read."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"
    if unit == "FLOP":
        for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if value >= factor:
                return f"{value / factor:.2f} {prefix}"
        return f"{value:.0f}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
