"""Tables and figures of an evaluation."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..tasks.asking import UNCUT
from ..tasks.rows import Row

COLUMNS = ("method", "positions", "tokens", "mean", "kv", "GFLOPs", "prefill s", "speed-up", "average", "of uncut")


def figures_of(row: Row, uncut: Row | None) -> dict[str, Any]:
    """One row as plain numbers: costs, accuracies in 0 to 1, ends of their 95% intervals.

    ``speedup`` is the uncut model's prefill time over this row's, measured in turns; ``relative`` the average accuracy
    over that of the uncut model.
    """
    costs = row.costs
    numbers: dict[str, Any] = {
        "method": row.plan.method,
        "target_num": row.plan.target_num,
        "positions": row.plan.positions or "default",
        "visual_tokens": costs.visual_tokens,
        "visual_tokens_mean": costs.visual_tokens_mean,
        "kv_entries": costs.kv_entries,
        "flops": costs.flops.total,
        "prefill_seconds": costs.seconds.prefill,
        "tower_seconds": costs.seconds.tower,
        "speedup": row.uncut_seconds / costs.seconds.prefill,
        "average": row.average,
        "average_low": row.average_interval[0],
        "average_high": row.average_interval[1],
        "relative": row.average / uncut.average if uncut is not None and uncut.average else None,
    }
    for task, score in row.scores.items():
        low, high = score.interval
        numbers |= {task: score.accuracy, f"{task}_low": low, f"{task}_high": high, f"{task}_n": score.questions}
    return numbers


def cells_of(row: Row, uncut: Row | None) -> list[str]:
    """One row as the table shows it; accuracies in % with their 95% Wilson intervals."""
    numbers = figures_of(row, uncut)
    relative = numbers["relative"]
    cells = [
        numbers["method"],
        "" if row.plan.method == UNCUT else numbers["positions"],
        f"{numbers['visual_tokens']}",
        f"{numbers['visual_tokens_mean']:.0f}",
        f"{numbers['kv_entries']:.0f}",
        f"{numbers['flops'] / 1e9:.1f}",
        f"{numbers['prefill_seconds']:.2f}",
        f"{numbers['speedup']:.1f}x",
        f"{100 * numbers['average']:.1f} ({100 * numbers['average_low']:.0f}-{100 * numbers['average_high']:.0f})",
        "-" if relative is None else f"{100 * relative:.0f}%",
    ]
    for task in row.scores:
        low, high = (round(100 * numbers[f"{task}_{end}"]) for end in ("low", "high"))
        cells.append(f"{100 * numbers[task]:.0f} ({low}-{high})")
    return cells


def header_of(rows: Sequence[Row]) -> list[str]:
    """The table's headings; tasks with their number of questions."""
    return [*COLUMNS, *(f"{task} ({score.questions})" for task, score in rows[0].scores.items())]


def uncut_of(rows: Sequence[Row]) -> Row | None:
    """The row of the model as it is."""
    return next((row for row in rows if row.plan.method == UNCUT), None)


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, with what its columns mean."""
    header = header_of(rows)
    uncut = uncut_of(rows)
    lines = [header, ["---"] * len(header), *(cells_of(row, uncut) for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = (
        "Accuracy in % with 95% intervals (of the average: normal; else: Wilson), number of questions "
        "in brackets. Tokens: "
        "visual tokens entering the language model; mean: over its layers; kv: cache entries after prefill. Costs are "
        "those of one prompt: FLOPs of tower, projector and prefill are counted, seconds are medians, and the speed-up "
        "of the prefill is measured in turns with the uncut model."
    )
    return f"{table}\n\n{note}\n"


def table_files(identity: dict[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    """The table as the texts of ``table.json``, ``table.csv`` and ``table.md``, by name."""
    uncut = uncut_of(rows)
    numbers = [figures_of(row, uncut) for row in rows]
    written = io.StringIO()
    writer = csv.DictWriter(written, fieldnames=list(numbers[0]))
    writer.writeheader()
    writer.writerows(numbers)
    return {
        "table.json": json.dumps({**identity, "rows": numbers}, indent=1) + "\n",
        "table.csv": written.getvalue(),
        "table.md": markdown(rows),
    }


def save_report(folder: Path, identity: dict[str, Any], rows: Sequence[Row]) -> list[Path]:
    """Write the tables of :func:`table_files` and the figure ``accuracy.png``; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in table_files(identity, rows).items():
        paths.append(folder / name)
        paths[-1].write_text(text, encoding="utf-8", newline="")
    paths.append(folder / "accuracy.png")
    draw(rows).savefig(paths[-1])
    return paths


def draw(rows: Sequence[Row]) -> Figure:
    """Average accuracy with 95% intervals against visual tokens, and against prefill time as a share of uncut."""
    figure = Figure(figsize=(9, 3.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    lines: dict[str, list[Row]] = {}
    for row in rows:
        positions = f", {row.plan.positions}" if row.plan.positions else ""
        lines.setdefault(row.plan.method + positions, []).append(row)
    for number, (name, group) in enumerate(lines.items()):
        average = [100 * row.average for row in group]
        half = [100 * (row.average_interval[1] - row.average) for row in group]
        if name == UNCUT:
            left.axhline(average[0], color="black", linestyle=":", label=UNCUT)
            right.axhline(average[0], color="black", linestyle=":", label=UNCUT)
            continue
        marker = "osD^"[number // 10 % 4]  # colours repeat after ten
        style: dict[str, Any] = {"yerr": half, "marker": marker, "elinewidth": 0.6, "capsize": 2, "label": name}
        left.errorbar([row.costs.visual_tokens_mean for row in group], average, **style)
        right.errorbar([row.costs.seconds.prefill / row.uncut_seconds for row in group], average, **style)
    left.set_xlabel("visual tokens, mean over the language model's layers")
    right.set_xlabel("prefill time, share of uncut")
    left.set_ylabel("average accuracy, %")
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    return figure
