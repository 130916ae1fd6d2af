"""The efficiency report of an evaluation as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEADINGS = (
    "row",
    "questions",
    "tokens",
    "mean",
    "kv",
    "GFLOPs",
    "cache MiB",
    "preprocess ms",
    "tower ms",
    "projector ms",
    "prefill ms",
    "first token ms",
    "per token ms",
    "peak GiB",
    "pairs",
    "prefill",
    "first token",
    "whole answer",
)

NOTE = (
    "Means over all calls and processes but the first call of each (warm-up). A question: visual tokens entering the "
    "language model and their mean over its layers, cache entries and FLOPs (tower, projector, prefill; counted), "
    "bytes in the cache, seconds of preprocessing, tower, projector, prefill. A call (a batch): time to the first "
    "token, preprocessing included. Per token: the passes behind the first. Peak: memory allocated on a CUDA device, "
    "elsewhere what is resident (Linux). The last columns compare calls that ran uncut as well, in turns: "
    "median ratio (quartiles) of seconds uncut to seconds as in the row, of the prefill, and, preprocessing included, "
    "until the first token and for the whole answer."
)


def figure(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value * scale:.{digits}f}"


def ratio(report: Mapping[str, Any], phase: str) -> str:
    """A speed-up with its quartiles."""
    found = report["speed_up"].get(phase)
    return "-" if found is None else f"{found['median']:.2f}x ({found['low']:.2f}-{found['high']:.2f})"


def cells(label: str, report: Mapping[str, Any]) -> list[str]:
    """One row of the table."""
    each, call, totals = report["per_question"], report["per_call"], report["totals"]
    flops = [each[f"flops_{part}"] for part in ("tower", "projector", "prefill")]
    return [
        label,
        str(totals["questions"]),
        figure(each["visual_tokens"]),
        figure(each["visual_tokens_mean"]),
        figure(each["kv_entries"]),
        figure(None if None in flops else sum(flops), 1e-9),
        figure(each["cache_bytes"], 2**-20, 2),
        *(figure(each[phase], 1e3) for phase in ("preprocessing", "tower", "projector", "prefill")),
        figure(call["first_token_with_preprocessing"], 1e3),
        figure(report["per_token"], 1e3),
        figure(totals["peak_bytes"] or None, 2**-30, 2),
        str(len(report["pairs"])),
        ratio(report, "prefill"),
        ratio(report, "first_token_with_preprocessing"),
        ratio(report, "all_with_preprocessing"),
    ]


def measured_on(report: Mapping[str, Any]) -> str:
    """The environment of a report on one line."""
    facts = dict(report["environment"])
    versions = ", ".join(f"{name} {number}" for name, number in facts.pop("versions").items())
    return "; ".join([*(f"{name} {value}" for name, value in facts.items()), versions])


def markdown(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of several rows in Markdown, with what its columns mean and what each was measured on."""
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *(cells(label, report) for label, report in reports.items())]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    places: dict[str, list[str]] = {}
    for label, report in reports.items():
        places.setdefault(measured_on(report), []).append(label)
    where = [
        f"{'Measured' if len(places) == 1 else ', '.join(labels) + ': measured'} on {place}."
        for place, labels in places.items()
    ]
    missing = [
        f"{label}: tokens are not counted: {report['uncounted']}"
        for label, report in reports.items()
        if report["uncounted"]
    ]
    return "\n\n".join([table, NOTE, *where, *missing]) + "\n"


def save_efficiency(folder: Path, reports: Mapping[str, Mapping[str, Any]], name: str = "efficiency.md") -> Path:
    """Write the table into a folder; returns its path."""
    path = folder / name
    path.write_text(markdown(reports), encoding="utf-8")
    return path
