"""The tables of FlowCut+ and what it is compared with; see :mod:`measured_tables`.

A method that has not been measured at a budget leaves its cell empty.
"""

from __future__ import annotations

from measured import average, difference, markdown, named, of_uncut, points, row_of, rows_of
from measured_tables import SHAPES, TASKS, THINGS, table, task_cells

from flowcut.tasks.rows import Row

FREE, TEXT = "flowcut_plus", "flowcut_plus(relevance=text)"
READ_TEXT = (TEXT, "cdpruner")
BUDGETS = (192, 128, 64, 32, 16)


def rows_at(name: str, budget: int) -> dict[str, Row]:
    """The rows of one budget with original positions, by method."""
    return {
        row.plan.method: row
        for row in rows_of(name)
        if row.plan.target_num == budget and row.plan.positions == "original"
    }


def budgets_of(name: str) -> list[int]:
    """The budgets at which FlowCut+ was measured."""
    return [budget for budget in BUDGETS if FREE in rows_at(name, budget)]


def methods_of(name: str) -> list[str]:
    """The methods, best at 64 tokens first, then those that were not measured there; ties by name."""
    there = rows_at(name, 64)
    everywhere = {row.plan.method for row in rows_of(name)} - {"uncut"}
    return sorted(everywhere, key=lambda one: (-there[one].average if one in there else 1.0, one))


def gigaflops(row: Row) -> str:
    """What the first prompt counts: tower, projector and prefill."""
    return f"{row.costs.flops.total / 1e9:.1f}"


def against(name: str) -> str:
    """Averages at every budget, and how much more FlowCut+ answers."""
    budgets = budgets_of(name)
    lines = [["uncut", average(row_of(name)), *[""] * (2 * len(budgets) - 1)]]
    for method in methods_of(name):
        own = TEXT if method in READ_TEXT else FREE
        cells = []
        for budget in budgets:
            rows = rows_at(name, budget)
            row = rows.get(method)
            cells.append("" if row is None else average(row))
            pair = None if row is None or method == own or own not in rows else (rows[own], row)
            cells.append("" if pair is None else points(difference(name, pair)))
        lines.append([named(method), *cells])
    header = [part for budget in budgets for part in (f"{budget} tokens", f"{budget}: FlowCut+ minus it")]
    return markdown(["method", *header], lines)


def by_task(name: str) -> str:
    """Every task at every budget, and what one prompt counts."""
    uncut = row_of(name)
    lines = [["576", "uncut", average(uncut), "100%", *task_cells(uncut), gigaflops(uncut)]]
    for budget in budgets_of(name):
        rows = rows_at(name, budget)
        for method in methods_of(name):
            if method in rows:
                row = rows[method]
                lines.append(
                    [str(budget), named(method), average(row), of_uncut(row, uncut), *task_cells(row), gigaflops(row)]
                )
    return markdown(["tokens", "method", "average (95%)", "of uncut", *TASKS, "GFLOPs"], lines)


@table("plus/average")
def plus_average() -> str:
    """Against every method on the test split."""
    return against("plus")


@table("plus-new/average")
def plus_new_average() -> str:
    """Against every method on scenes with cut-outs that no training saw."""
    return against("plus-new")


@table("plus/tasks")
def plus_tasks() -> str:
    """Every task on the test split."""
    return by_task("plus")


@table("plus/groups")
def plus_groups() -> str:
    """FlowCut+ minus FlowCut, and minus uncut, by groups of tasks."""
    lines = []
    for budget in budgets_of("plus"):
        rows = rows_at("plus", budget)
        for form in (one for one in (FREE, TEXT) if one in rows):
            pair, uncut = (rows[form], rows["flowcut"]), (rows[form], row_of("plus"))
            cells = [points(difference("plus", pair, group)) for group in (THINGS, SHAPES)]
            lines.append(
                [str(budget), named(form), *cells, *(points(difference("plus", uncut, [one])) for one in SHAPES)]
            )
    things = ", ".join(f"`{task}`" for task in THINGS)
    shapes = ", ".join(f"`{task}`" for task in SHAPES)
    header = [f"minus `flowcut`: {things}", f"minus `flowcut`: {shapes}", *(f"minus uncut: `{one}`" for one in SHAPES)]
    return markdown(["tokens", "method", *header], lines)


@table("budgets/methods")
def budgets_methods() -> str:
    """Every method that was measured with both positions, at 64 tokens."""
    rows = {(row.plan.method, row.plan.positions): row for row in rows_of("budgets") if row.plan.target_num == 64}
    both = [method for method, place in rows if place == "original" and (method, "compact") in rows]
    lines = []
    for method in sorted(both, key=lambda one: -rows[one, "original"].average):
        pair = [rows[method, place] for place in ("original", "compact")]
        lines.append([named(method), *(average(row) for row in pair), points(difference("budgets", pair))])
    return markdown(["method", "original", "compact", "original minus compact"], lines)
