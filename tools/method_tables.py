"""The tables of all methods (flowcut-mini 0.1.0); see :mod:`measured_tables`."""

from __future__ import annotations

from itertools import pairwise

from measured import average, difference, markdown, named, of_uncut, percent, points, row_of, rows_of
from measured_tables import TASKS, table, task_cells

from flowcut.tasks.rows import Row

BUDGETS = (192, 64, 32)
PAPER = ("flowcut", "visionzip", "pyramiddrop", "sparsevlm", "fastv")
"""The paper's order on LLaVA-1.5-7B, best first."""


def ranked() -> list[str]:
    """The methods, best at 64 tokens first; ties by name."""
    return [row.plan.method for row in sorted(at_64(), key=lambda row: (-row.average, row.plan.method))]


def at_64() -> list[Row]:
    """Every method's row at 64 tokens."""
    return [row for row in rows_of("methods") if row.plan.target_num == 64]


@table("methods/average")
def methods_average() -> str:
    """Averages and costs at three budgets."""
    uncut = row_of("methods")
    lines = [["uncut", average(uncut), "", "", *cost_cells([uncut])]]
    for method in ranked():
        rows = [row_of("methods", method, budget) for budget in BUDGETS]
        halves = [percent(row.average_interval[1] - row.average, 1) for row in rows]
        means = [f"{percent(row.average, 1)} ± {half}" for row, half in zip(rows, halves, strict=True)]
        lines.append([named(method), *means, *cost_cells(rows)])
    return markdown(["method", *(str(budget) for budget in BUDGETS), "mean tokens", "kv", "GFLOPs"], lines)


def cost_cells(rows: list[Row]) -> list[str]:
    """Mean tokens, cache entries and GFLOPs of some rows."""
    costs = [row.costs for row in rows]
    return [
        " / ".join(f"{one.visual_tokens_mean:.0f}" for one in costs),
        " / ".join(f"{one.kv_entries:.0f}" for one in costs),
        " / ".join(f"{one.flops.total / 1e9:.0f}" for one in costs),
    ]


@table("methods/tasks")
def methods_tasks() -> str:
    """Every task at 64 tokens."""
    uncut = row_of("methods")
    rows = [uncut, row_of("original", "oracle", 64, "original")]
    rows += [row_of("methods", method, 64) for method in ranked()]
    lines = []
    for row in rows:
        place = "" if row.plan.method == "uncut" else row.plan.positions or "compact"
        lines.append([named(row.plan.method), place, average(row), of_uncut(row, uncut), *task_cells(row)])
    return markdown(["method", "positions", "average (95%)", "of uncut", *TASKS], lines)


@table("methods/paired")
def methods_paired() -> str:
    """FlowCut minus every other method."""
    lines = []
    for method in ranked():
        if method != "flowcut":
            pairs = [[row_of("methods", name, budget) for name in ("flowcut", method)] for budget in BUDGETS]
            lines.append([named(method), *(points(difference("methods", pair)) for pair in pairs)])
    return markdown(["`flowcut` minus", *(str(budget) for budget in BUDGETS)], lines)


@table("methods/order")
def methods_order() -> str:
    """Neighbours in the paper's order, the first minus the second."""
    lines = []
    for first, second in pairwise(PAPER):
        pairs = [[row_of("methods", name, budget) for name in (first, second)] for budget in BUDGETS]
        lines.append(
            [f"{named(first)} minus {named(second)}", *(points(difference("methods", pair)) for pair in pairs)]
        )
    return markdown(["", *(str(budget) for budget in BUDGETS)], lines)
