"""What the recorders of all processes of a row measured, put together and stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .efficiency import PHASES, Totals

FILE = "efficiency.json"
"""The reports of all rows of a folder, by the rows' labels."""


def gathered(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of the records that the processes of one row wrote, see ``Recorder.as_dict``.

    Returns:
        ``environment``, of the first process, with how many there were; ``totals``, summed over them; ``pairs`` of
        all; ``per_question``, ``per_call`` and ``per_token``, means without the first call of each process;
        ``speed_up``, see :func:`ratios`.

    Raises:
        ValueError: there is no record.
    """
    if not records:
        raise ValueError("An efficiency report needs the record of at least one process.")
    totals = Totals()
    for record in records:
        totals.merge(Totals.from_dict(record["totals"]))
    pairs = [pair for record in records for pair in record["pairs"]]
    counts = asdict(totals.counts)
    counted = counts.pop("questions")
    return {
        "environment": {**records[0]["environment"], "processes": len(records)},
        "totals": asdict(totals),
        "pairs": pairs,
        "uncounted": next((record["uncounted"] for record in records if record["uncounted"]), ""),
        "per_question": {
            **{name: share(getattr(totals, name), totals.questions) for name in PHASES if name != "first_token"},
            **{name: share(value, counted) for name, value in counts.items()},
            "cache_bytes": share(totals.cache_bytes, totals.questions),
            "new_tokens": share(totals.new_tokens, totals.questions),
        },
        "per_call": {
            "questions": share(totals.questions, totals.calls),
            "first_token": share(totals.first_token, totals.calls),
            "first_token_with_preprocessing": share(totals.preprocessing + totals.first_token, totals.calls),
        },
        "per_token": share(totals.total - totals.first_token, totals.later_steps),
        "speed_up": ratios(pairs),
    }


def share(amount: float, of: int) -> float | None:
    """A mean; ``None`` where nothing was measured."""
    return amount / of if of else None


def ratios(pairs: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Uncut seconds over cut seconds of the same calls: the median over pairs and its quartiles, for every phase.

    ``first_token_with_preprocessing`` and ``all_with_preprocessing`` have the preprocessing on both sides. Empty where
    there are no pairs; phases that took no time are left out.
    """
    found: dict[str, dict[str, float]] = {}
    wanted: dict[str, tuple[str, ...]] = {name: (name,) for name in PHASES if name != "preprocessing"}
    wanted["first_token_with_preprocessing"] = ("preprocessing", "first_token")
    wanted["all_with_preprocessing"] = ("preprocessing", "total")
    for name, parts in wanted.items():
        sides = [[sum(side[part] for part in parts) for side in pair] for pair in pairs]
        values = [uncut / cut for uncut, cut in sides if cut > 0]
        if values:
            low, high = np.quantile(values, (0.25, 0.75))
            found[name] = {"median": median(values), "low": float(low), "high": float(high), "pairs": len(values)}
    return found


def read_reports(folder: Path) -> dict[str, dict[str, Any]]:
    """The reports of a folder by label; none where there is no file.

    Raises:
        ValueError: the file is no such file.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise TypeError("not an object")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no efficiency reports ({error}); move it away to measure anew.") from error
    return stored


def write_reports(folder: Path, reports: Mapping[str, Mapping[str, Any]], name: str = FILE) -> Path:
    """Write the reports of a folder, whole or not at all; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    partial = path.with_name(f"{name}.partial")
    partial.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path
