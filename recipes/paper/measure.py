"""The figures of a table that a run here gives: answers, scores, costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flowcut import FlowCut, FlowCutError
from flowcut.checkpoints.loading import load_model
from flowcut.llava_files.job import Job
from flowcut.llava_files.pictures import visual_of
from flowcut.llava_files.questions import QuestionFile
from flowcut.llava_files.run import Summary, answer_file
from flowcut.measure.run import run

from .benchmarks import BENCHMARKS, Benchmark
from .tables import PublishedTable, Row
from .videos import to_judge, to_lines

COSTS = ("prefill ms", "TFLOPs")
"""Columns that one prompt tells; ``prefill x``, ``total s`` and ``total x`` go with them in Table 5."""

BY_HAND = "scores.json"
REPEATS = 10


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        value: in the column's unit.
        interval: 95%, where it is known.
    """

    value: float
    interval: tuple[float, float] | None = None


Figures = dict[str, Figure]
"""By column."""


@dataclass(frozen=True)
class Settings:
    """How a table is measured.

    Attributes:
        model: a hub id or a folder.
        data: the folder with the benchmarks.
        output: where answers and tables go.
        flowcut: the expression that stands for FlowCut with its defaults.
        benchmarks: only these columns; all if empty.
        rows: only rows whose name begins with one of these; all if empty.
        mode, batch_size, processes, limit, device, dtype: see :class:`~flowcut.llava_files.job.Job`.
        max_new_tokens: longest answer; ``None`` for each benchmark's own.
    """

    model: str
    data: Path
    output: Path
    flowcut: str = "flowcut"
    benchmarks: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    mode: str = "vicuna_v1"
    batch_size: int = 1
    processes: int = 1
    limit: int | None = None
    max_new_tokens: int | None = None
    device: str | None = None
    dtype: str | None = None

    def wants(self, row: Row) -> bool:
        """Whether a row is measured."""
        return bool(row.method) and (not self.rows or row.name.startswith(self.rows))


@dataclass
class Measured:
    """What was measured.

    Attributes:
        figures: by row and column.
        answered: columns whose answers wait for somebody else's judge, by row: the files.
        problems: what went wrong.
    """

    figures: dict[str, Figures] = field(default_factory=dict)
    answered: dict[str, list[Path]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def slug(name: str) -> str:
    """A row's name as a folder's."""
    return re.sub(r"[^\w.+:%-]+", "-", name).replace(":", "-").replace("%", "")


def measure(table: PublishedTable, settings: Settings, tell: Callable[[str], None] = lambda line: None) -> Measured:
    """Measure every wanted row on every benchmark whose files are there; what is answered already is not asked again.

    Args:
        table: the published table.
        settings: how.
        tell: called with a line for every step.

    Raises:
        ValueError: ``scores.json`` in the output folder or the settings name a row or a column that is not there.
    """
    check_choice(table, settings)
    measured = Measured()
    columns = ("POPE",) if "total s" in table.columns else table.columns
    if settings.benchmarks:
        columns = tuple(column for column in columns if column in settings.benchmarks)
    asked = {name: one for name, one in BENCHMARKS.items() if name in columns}
    there = {name: one for name, one in asked.items() if one.is_there(settings.data)}
    for name in sorted(set(asked) - set(there)):
        tell(f"{name}: not run, {settings.data / asked[name].questions} is not there")
    for row in filter(settings.wants, table.rows):
        figures = measured.figures.setdefault(row.name, {})
        steps = {name: partial(answered, row, name, one, table, settings, measured) for name, one in there.items()}
        if set(COSTS) & set(table.columns):
            steps["costs of one prompt"] = partial(costs, row, table, settings)
        for name, step in steps.items():
            tell(f"{row.name}: {name}")
            try:
                figures |= step()
            except (FlowCutError, ValueError, OSError) as error:
                measured.problems.append(f"{row.name}, {name}: {error}")
    speed_ups(table, measured)
    by_hand(table, settings.output, measured)
    return measured


def check_choice(table: PublishedTable, settings: Settings) -> None:
    """Refuse rows and benchmarks that the table does not have.

    Raises:
        ValueError: names one, and those there are.
    """
    columns = [*table.columns, *(["POPE"] if "total s" in table.columns else [])]
    for name in settings.benchmarks:
        if name not in columns:
            raise ValueError(f"This table has no column {name!r}; it has {', '.join(columns)}.")
    for name in settings.rows:
        if not any(row.name.startswith(name) and row.method for row in table.rows):
            names = ", ".join(row.name for row in table.rows if row.method)
            raise ValueError(f"This table has no row {name!r} that can be run here; it has {names}.")


def answered(
    row: Row, name: str, benchmark: Benchmark, table: PublishedTable, settings: Settings, measured: Measured
) -> Figures:
    """Answer one benchmark with one row's method, and judge the answers where that is done here."""
    folder = settings.output / slug(row.name)
    questions = settings.data / benchmark.questions
    videos = settings.data / benchmark.images
    if benchmark.videos:
        questions = to_lines(questions, videos, settings.output / f"{name}.jsonl")
    file = QuestionFile(questions, benchmark.language, limit=settings.limit)
    job = Job(
        questions=file,
        output=folder / f"{name}.jsonl",
        model=settings.model,
        images=settings.data / benchmark.images if benchmark.images else None,
        method=row.build(settings.flowcut),
        mode="model" if benchmark.videos else settings.mode,
        max_new_tokens=settings.max_new_tokens or benchmark.max_new_tokens,
        batch_size=settings.batch_size,
        processes=settings.processes,
        device=settings.device,
        dtype=settings.dtype,
    )
    summary = answer_file(job)
    if summary.trouble:
        measured.problems += [f"{row.name}, {name}: {message}" for message in summary.trouble]
        return {}
    if "total s" in table.columns:
        return {"total s": Figure(summary.seconds)}
    if benchmark.videos:
        judged = folder / f"{name}.judge.jsonl"
        limited = settings.limit is not None
        if not limited:
            to_judge(summary.output, questions, (settings.data / benchmark.questions).with_name("test_a.json"), judged)
        measured.answered.setdefault(row.name, []).append(summary.output if limited else judged)
        return {}
    return judged_here(name, benchmark, summary, file, settings, row, measured)


def judged_here(
    name: str,
    benchmark: Benchmark,
    summary: Summary,
    file: QuestionFile,
    settings: Settings,
    row: Row,
    measured: Measured,
) -> Figures:
    """The score of an answer file; files for others' judges are noted."""
    asked = None if file.limit is None else [one.first["question_id"] for one in file.read()]
    score = benchmark.score(summary.output, settings.data, asked)
    if score is None:
        measured.answered.setdefault(row.name, []).append(summary.output)
        return {}
    return {name: Figure(score.value, score.interval)}


def costs(row: Row, table: PublishedTable, settings: Settings) -> Figures:
    """FLOPs and prefill time of POPE's first question, measured in turns with the uncut model."""
    pope = BENCHMARKS["POPE"]
    if not pope.is_there(settings.data):
        return {}
    question = next(QuestionFile(settings.data / pope.questions).read())
    picture = visual_of(question, settings.data / pope.images)
    assert picture is not None
    loaded = load_model(settings.model, settings.device, settings.dtype)
    method = row.build(settings.flowcut)
    result = run(
        loaded, method or FlowCut(retain_ratio=1 / 9), picture, question.text, max_new_tokens=1, repeats=REPEATS
    )
    side = result.uncut if method is None else result.cut
    found = {
        "TFLOPs": Figure(side.flops.total / 1e12),
        "prefill ms": Figure(1000 * side.seconds.prefill),
        "prefill x": Figure(result.uncut.seconds.prefill / side.seconds.prefill),
    }
    return {column: figure for column, figure in found.items() if column in table.columns}


def speed_ups(table: PublishedTable, measured: Measured) -> None:
    """How many times as fast as the uncut row each row was over the whole file."""
    if "total x" not in table.columns:
        return
    uncut = next(row.name for row in table.rows if row.method == "uncut")
    base = measured.figures.get(uncut, {}).get("total s")
    for figures in measured.figures.values():
        if base is not None and "total s" in figures:
            figures["total x"] = Figure(base.value / figures["total s"].value)


def by_hand(table: PublishedTable, output: Path, measured: Measured) -> None:
    """Figures that others' judges gave, from ``scores.json``: rows, in them columns.

    Raises:
        ValueError: the table has no such row or column.
    """
    path = output / BY_HAND
    if not path.is_file():
        return
    rows = {row.name for row in table.rows}
    for name, given in json.loads(path.read_text()).items():
        unknown = [column for column in given if column not in table.columns]
        if name not in rows or unknown:
            wrong = name if name not in rows else ", ".join(unknown)
            raise ValueError(f"{path} has a figure for {wrong!r}, which this table does not have.")
        figures = measured.figures.setdefault(name, {})
        figures |= {column: Figure(float(value)) for column, value in given.items()}
