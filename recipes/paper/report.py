"""The table: published figures, those of the run, and how they compare."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from .measure import Figure, Measured
from .tables import UNCUT, PublishedTable, Row

AVERAGES = {"Avg", "Avg score"}
HARDWARE = {"total s", "prefill ms"}
"""Columns that say as much of a machine as of a method: shown, not compared."""

FEWER_IS_BETTER = {"TFLOPs"}
TOLERANCE = 0.5
"""Points within which a figure counts as reproduced."""


def tolerance_of(column: str, published: float) -> float:
    """How far a figure may lie from the published one and still count as reproduced.

    Half a point of accuracy; 1% of MME's sum; 0.05 of a judge's score (0 to 5); 0.1 of a speed-up, which is published
    to one decimal; 2% of FLOPs.
    """
    if column == "MME":
        return 0.01 * published
    if column == "TFLOPs":
        return 0.02 * published
    if column.endswith(" x"):
        return 0.1
    return 0.05 if column.endswith("score") and column not in AVERAGES else TOLERANCE


@dataclass(frozen=True)
class Cell:
    """One figure of the table.

    Attributes:
        published, here: the paper's and the run's.
        mark: ``reproduced``, ``better``, ``worse``, ``not run``, or why the two are not compared.
    """

    published: float | None
    here: Figure | None
    mark: str

    def text(self) -> str:
        """As the table shows it."""
        if self.published is None and self.here is None:
            return ""
        published = "" if self.published is None else f"{self.published:g}"
        here = "" if self.here is None else f"{self.here.value:.4g}"
        return f"{published} / {here} {self.mark}".replace("/  ", "/ ")


def cell_of(column: str, published: float | None, here: Figure | None, incomparable: str) -> Cell:
    """Compare a published figure with the run's.

    Args:
        column: its name.
        published, here: either may be missing.
        incomparable: why figures of this run are not compared, or nothing.
    """
    if here is None:
        return Cell(published, None, "not run" if published is not None else "")
    if published is None:
        return Cell(None, here, "not published")
    if incomparable or column in HARDWARE:
        return Cell(published, here, incomparable or "other machine")
    gap = here.value - published
    # Both are rounded figures; what lies on the edge is inside.
    if abs(gap) <= tolerance_of(column, published) + 1e-9:
        return Cell(published, here, "reproduced")
    return Cell(published, here, "better" if (gap > 0) != (column in FEWER_IS_BETTER) else "worse")


def relative(row: Row, uncut: Row | None, table: PublishedTable, measured: Measured) -> tuple[str, Cell] | None:
    """The average over the benchmarks that were run, each as a share of the uncut model's, published and here.

    Returns:
        Which benchmarks these are, and both averages; ``None`` where there are none.
    """
    if uncut is None or row is uncut or not AVERAGES & set(table.columns):
        return None
    own, base = measured.figures.get(row.name, {}), measured.figures.get(uncut.name, {})
    common = [
        column
        for column in table.columns
        if column not in AVERAGES
        and not column.endswith("score")
        and all(column in figures for figures in (own, base, row.figures, uncut.figures))
        and base[column].value > 0
    ]
    if not common:
        return None
    published = sum(row.figures[one] / uncut.figures[one] for one in common) / len(common)
    here = sum(own[one].value / base[one].value for one in common) / len(common)
    return ", ".join(common), cell_of("Avg", 100 * published, Figure(100 * here), "")


def incomparable(table: PublishedTable, model: str, limited: bool) -> str:
    """Why the run's figures are not compared with the published ones; nothing where they are."""
    if not table.was_measured_with(model):
        return "other model"
    return "part of the questions" if limited else ""


def write_report(
    name: str, table: PublishedTable, measured: Measured, model: str, limited: bool, output: Path
) -> list[Path]:
    """Write ``table.md`` and ``table.csv``; returns the paths."""
    why_not = incomparable(table, model, limited)
    cells = {
        row.name: {
            column: cell_of(column, row.figures.get(column), measured.figures.get(row.name, {}).get(column), why_not)
            for column in table.columns
        }
        for row in table.rows
    }
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / "table.md", output / "table.csv"]
    paths[0].write_text(markdown(name, table, measured, cells, model, why_not))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["row", "column", "published", "here", "low", "high", "mark"])
    for row, own in cells.items():
        for column, cell in own.items():
            low, high = (cell.here.interval or ("", "")) if cell.here else ("", "")
            published = "" if cell.published is None else cell.published
            writer.writerow([row, column, published, cell.here.value if cell.here else "", low, high, cell.mark])
    paths[1].write_text(written.getvalue())
    return paths


def markdown(
    name: str,
    table: PublishedTable,
    measured: Measured,
    cells: dict[str, dict[str, Cell]],
    model: str,
    why_not: str,
) -> str:
    """The table as a page."""
    header = ["row", *table.columns]
    lines = [header, ["---"] * len(header)]
    lines += [[row.name, *(cells[row.name][column].text() for column in table.columns)] for row in table.rows]
    text = [
        f"# Table {name}: {table.title}",
        "",
        f"Published (arXiv 2505.19536, with {table.models[0]}) / here (with {model}). Reproduced: within half a point "
        "(1% of MME, 0.05 of a judge's score, 0.1 of a speed-up, 2% of FLOPs). `table.csv` has 95% intervals.",
        *([f"Figures of this run are not compared: {why_not}."] if why_not else []),
        "",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]
    uncut = next((row for row in table.rows if row.method == UNCUT), None)
    averages = [(row, relative(row, uncut, table, measured)) for row in table.rows]
    if any(found for _, found in averages) and not why_not:
        text += ["", "Average over the benchmarks that were run, in % of the uncut model:", ""]
        text += ["| row | over | published / here |", "|---|---|---|"]
        text += [f"| {row.name} | {found[0]} | {found[1].text()} |" for row, found in averages if found]
    waiting = [path for paths in measured.answered.values() for path in paths]
    if waiting:
        text += ["", "Answers that wait for their benchmark's own judge (put its figures into `scores.json`):", ""]
        text += [f"* `{path}`" for path in waiting]
    if measured.problems:
        text += ["", "Problems:", "", *(f"* {problem}" for problem in measured.problems)]
    return "\n".join(text) + "\n"
