"""lmms-eval's files of several rows as one table: scores, paired differences to uncut, the average papers print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..measure.efficiency_report import gathered
from ..tasks.paired import Difference, paired_difference
from .rows import DONE, HarnessRow

PUBLISHED = {
    "pope": ("pope_f1_score",),
    "mme": ("mme_perception_score", "mme_cognition_score"),
}
"""The metrics that papers print, added up, of tasks whose first metric is another one."""

NO_FILTER = "none"


@dataclass(frozen=True)
class GatheredRow:
    """What one row found.

    Attributes:
        label: method and budget.
        scores: by task, of the metric in ``metrics``, as the harness aggregates it.
        metrics: by task, its metric's name, or several joined by ``+`` whose values are added.
        samples: by task of the harness's own, for every question's number its score, where one is logged.
        members: by task, itself, or where it is a group the tasks in it.
        efficiency: the report of all its processes; ``None`` where none was written.
        differences: by task, to the uncut row; empty for that row itself.
    """

    label: str
    scores: dict[str, float]
    metrics: dict[str, str]
    samples: dict[str, dict[int, float]]
    members: dict[str, tuple[str, ...]]
    efficiency: dict[str, Any] | None
    differences: dict[str, Difference] = field(default_factory=dict)


def read_gathered(row: HarnessRow, output: Path) -> GatheredRow:
    """What a finished row found.

    Raises:
        ValueError: its files are not as lmms-eval writes them, or a task has no metric.
    """
    folder = row.folder(output)
    try:
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
        results = json.loads((folder / done["results"]).read_text(encoding="utf-8"))
        logged = {task: read_samples(folder / name) for task, name in done["samples"].items()}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} does not hold a finished row ({error!r}). Remove it to measure anew.") from error
    metrics, scores = {}, {}
    for task in row.settings.tasks:
        metrics[task], scores[task] = score_of(task, results)
    members = {task: members_of(task, results) for task in row.settings.tasks}
    samples = {task: dict(scored(some, score_of(task, results)[0])) for task, some in logged.items()}
    records = [json.loads(path.read_text()) for path in sorted((folder / "efficiency").glob("efficiency-*.json"))]
    return GatheredRow(row.label, scores, metrics, samples, members, gathered(records) if records else None)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The questions that the harness logged."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def score_of(task: str, results: Mapping[str, Any]) -> tuple[str, float]:
    """A task's metric and its value; of a group that has none, the mean of its members.

    Raises:
        ValueError: there is no number.
    """
    found = {
        name.split(",")[0]: value
        for name, value in results["results"].get(task, {}).items()
        if "stderr" not in name and isinstance(value, (int, float)) and name not in ("samples", "alias")
    }
    wanted = PUBLISHED.get(task) or listed_metrics(task, results) or tuple(found)[:1]
    if wanted and all(name in found for name in wanted):
        return "+".join(wanted), float(sum(found[name] for name in wanted))
    members = [score_of(member, results) for member in results["group_subtasks"].get(task, ()) if member != task]
    if not members:
        raise ValueError(f"lmms-eval reports no number for {task}; it has: {', '.join(found) or 'none'}.")
    return f"mean of {len(members)} tasks", sum(value for _, value in members) / len(members)


def members_of(task: str, results: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks in a group and in the groups in it; a task that is none alone."""
    inside = [member for member in results["group_subtasks"].get(task, ()) if member != task]
    return tuple(one for member in inside for one in members_of(member, results)) if inside else (task,)


def listed_metrics(task: str, results: Mapping[str, Any]) -> tuple[str, ...]:
    """The first metric that a task lists."""
    listed = results["configs"].get(task, {}).get("metric_list") or ()
    return tuple(str(one["metric"]) for one in listed)[:1]


def scored(samples: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """Number and score of every question that has one: the metric's own, else that of any metric with a ``score``."""
    found = []
    for sample in samples:
        first = [sample[name] for name in metric.split("+") if name in sample]
        others = [value for value in sample.values() if isinstance(value, dict)]
        known = [score for score in map(plain_score, [*first, *others]) if score is not None]
        if known:
            found.append((int(sample["doc_id"]), known[0]))
    return found


def plain_score(value: Any) -> float | None:
    """A question's score, where it is a number or holds one."""
    if isinstance(value, Mapping):
        value = value.get("score")
    return float(value) if isinstance(value, (int, float)) else None


def compared(rows: Sequence[GatheredRow]) -> list[GatheredRow]:
    """The rows with their differences to the first, which is uncut, question by question.

    Raises:
        ValueError: two rows did not answer the same questions.
    """
    uncut = rows[0]
    together = [uncut]
    for row in rows[1:]:
        hits: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
        for task, scores in row.samples.items():
            before = uncut.samples.get(task, {})
            if set(scores) != set(before):
                raise ValueError(f"{row.label} and {uncut.label} answered other questions of {task} than each other.")
            for side, one in zip(hits, (scores, before), strict=True):
                side[task] = [one[key] for key in sorted(scores)]
        differences = {
            task: paired_difference(*hits, members)
            for task, members in row.members.items()
            if all(len(hits[0].get(member, ())) > 1 for member in members)
        }
        together.append(replace(row, differences=differences))
    return together


def relative_average(row: GatheredRow, uncut: GatheredRow) -> float | None:
    """The mean over tasks of the score's share of the uncut one, as papers print; ``None`` where one of these is 0."""
    if any(not uncut.scores[task] for task in row.scores):
        return None
    return sum(score / uncut.scores[task] for task, score in row.scores.items()) / len(row.scores)


def figures(rows: Sequence[GatheredRow]) -> list[dict[str, Any]]:
    """The rows as plain numbers, for JSON."""
    return [
        {
            "row": row.label,
            "scores": row.scores,
            "metrics": row.metrics,
            "questions": {task: len(scores) for task, scores in row.samples.items()},
            "differences": {task: asdict(one) for task, one in row.differences.items()},
            "relative_average": relative_average(row, rows[0]),
        }
        for row in rows
    ]


def table_of(rows: Sequence[GatheredRow]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells."""
    tasks = list(rows[0].scores)
    headings = ["row", *(f"{task} {rows[0].metrics[task]}" for task in tasks), "of uncut"]
    body = []
    for row in rows:
        cells = [row.label]
        for task in tasks:
            one = row.differences.get(task)
            change = "" if one is None else f" ({100 * one.mean:+.1f}: {100 * one.low:+.1f} to {100 * one.high:+.1f})"
            value = row.scores[task]
            cells.append((f"{100 * value:.1f}" if 0 <= value <= 1 else f"{value:.1f}") + change)
        share = relative_average(row, rows[0])
        body.append([*cells, "-" if share is None else f"{100 * share:.1f}%"])
    return headings, body


NOTE = (
    "Scores are those lmms-eval aggregates (those between 0 and 1 in %). In brackets the difference to the uncut row "
    "in points per question and its paired 95% interval, from the questions' own scores that lmms-eval logs: for F1 "
    "and MME's sums that is the share of right answers, not the score in front. Of uncut: the mean over tasks of the "
    "score's share of the uncut score. A group's tasks weigh the same; one of a single question has no interval."
)


def save_gathered(output: Path, identity: Mapping[str, Any], rows: Sequence[GatheredRow]) -> list[Path]:
    """Write ``harness.json`` and ``harness.md``; returns their paths."""
    headings, body = table_of(rows)
    lines = [headings, ["---"] * len(headings), *body]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    texts = {
        "harness.json": json.dumps({**identity, "rows": figures(rows)}, indent=1) + "\n",
        "harness.md": f"{table}\n\n{NOTE}\n",
    }
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8")
    return [output / name for name in texts]
