"""The table and the figure of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..measure.cases import UNCUT, Case, uncut_of

COLUMNS = (
    "method",
    "budget",
    "batch",
    "tokens",
    "tower",
    "projector",
    "prefill",
    "first token",
    "per token",
    "tokens/s",
    "FLOPs",
    "arrives",
    "MiB",
    "kernels",
    "waits",
    "step",
)
"""Seconds in milliseconds, in brackets of the uncut model's; the last three count operations and waits of the host
until the first token, and both of a later one."""

TIMED = ("method", "budget", "batch", "tower", "prefill", "first token", "per token")
"""Columns of the clock's table in a terminal."""

COUNTED = ("method", "budget", "batch", "tokens", "FLOPs", "arrives", "kernels", "waits", "step", "tokens/s", "MiB")
"""Columns of the other table."""


def cells(case: Case, cases: Sequence[Case], spread: bool = True) -> dict[str, str]:
    """One row of the table, by column; of a method that was refused the first three and why, as its tokens.

    Args:
        case: the row.
        cases: all rows, among them the uncut model's.
        spread: whether the middle half of the rounds stands behind the ratio; else milliseconds above 100 are whole.
    """
    row = {
        "method": f"{case.label}, compiled tower" if case.compiled else case.label,
        "budget": "" if case.budget is None else str(case.budget),
        "batch": str(case.batch_size),
    }
    if case.refusal:
        return {**dict.fromkeys(COLUMNS, ""), **row, "tokens": case.refusal}
    uncut = uncut_of(case, cases)

    def seconds(phase: str) -> str:
        median = 1000 * case.seconds(phase)
        shown = f"{median:.1f}" if spread or median < 100 else f"{median:.0f}"
        if case is uncut or not uncut.seconds(phase):
            return shown
        low, high = case.spread(phase)
        halves = f"; {1000 * low:.1f}-{1000 * high:.1f}" if spread else ""
        return f"{shown} ({case.ratio(uncut, phase):.2f}{halves})"

    arrives, flops = case.arrives(uncut), case.flop_ratio
    row |= {
        "tokens": "all" if case.visual_tokens is None else f"{case.visual_tokens:.0f}",
        "tower": seconds("tower"),
        "projector": seconds("projector"),
        "prefill": seconds("prefill"),
        "first token": seconds("first_token"),
        "per token": seconds("per_token"),
        "tokens/s": f"{case.tokens_per_second:.1f}",
        "FLOPs": "1" if flops is None else f"{flops:.3f}",
        "arrives": "" if arrives is None else f"{arrives:.0%}",
        "MiB": "" if case.peak_bytes is None else f"{case.peak_bytes / 2**20:.0f}",
    }
    counted = {
        "kernels": str(case.prefill[0]),
        "waits": str(case.prefill[1]),
        "step": f"{case.step[0]:.0f}, {case.step[1]:.0f}",
    }
    return row | (dict.fromkeys(counted, "") if case.compiled else counted)


def as_markdown(cases: Sequence[Case]) -> str:
    """The table as a page shows it."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for case in cases:
        row = cells(case, cases)
        rows.append([row[column] for column in COLUMNS])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def title_of(case: Case) -> str:
    """A case in the figure."""
    budget = "" if case.budget is None else f", {case.budget} tokens"
    return f"{case.label}{', compiled' if case.compiled else ''}{budget}, batch {case.batch_size}"


def save_figure(path: Path, cases: Sequence[Case], title: str) -> None:
    """Draw seconds to the first token, by phase, and seconds of a later token, for every case.

    Raises:
        OSError: the file cannot be written.
    """
    shown = [case for case in cases if not case.refusal]
    figure = Figure(figsize=(9, 1.2 + 0.34 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    names = [title_of(case) for case in shown]
    start = [0.0] * len(shown)
    for phase, color in (("tower", "tab:blue"), ("prefill", "tab:orange")):
        widths = [1000 * case.seconds(phase) for case in shown]
        left.barh(names, widths, left=start, color=color, label=phase)
        start = [before + width for before, width in zip(start, widths, strict=True)]
    rest = [1000 * case.seconds("first_token") - before for case, before in zip(shown, start, strict=True)]
    left.barh(names, [max(0.0, width) for width in rest], left=start, color="tab:gray", label="the rest")
    left.set_xlabel("milliseconds to the first token")
    left.legend(fontsize="small")
    right.barh(names, [1000 * case.seconds("per_token") for case in shown], color="tab:green")
    right.set_xlabel("milliseconds of every later token")
    for row, case in enumerate(shown):
        low, high = case.spread("first_token")
        left.plot([1000 * low, 1000 * high], [row, row], color="black", linewidth=1)
        if case.label == UNCUT and not case.compiled:
            left.axvline(1000 * case.seconds("first_token"), color="black", linewidth=0.5, linestyle=":")
    left.invert_yaxis()
    figure.suptitle(title, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
