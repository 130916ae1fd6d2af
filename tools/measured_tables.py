"""Every table of the pages that is made of stored rows: a name, and the function that makes it.

Accuracies are in %, intervals at 95%; differences are paired (:mod:`flowcut.tasks.paired`) and in points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from measured import average, difference, interval, markdown, named, of_uncut, percent, points, row_of, rows_of

from flowcut.tasks import load_split
from flowcut.tasks.rows import Row

THINGS = ("exist", "name", "where", "count")
SHAPES = ("color", "shape")
TASKS = (*THINGS, *SHAPES)
BUDGETS = (192, 128, 64, 32, 16)
POSITIONS = ("compact", "original")
CALIBRATED = "flowcut(schedule=calibrated)"
TARGETS = {"exist": 85, "name": 75, "where": 75, "count": 70, "color": 80, "shape": 95}
"""What the recipe aimed at with all 576 tokens."""

TABLES: dict[str, Callable[[], str]] = {}


def table(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Give a table the name that pages call it by."""

    def take(make: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = make
        return make

    return take


def task_cells(row: Row, tasks: Sequence[str] = TASKS, intervals: bool = False) -> list[str]:
    """A row's accuracy in every task; empty where it was not asked."""
    cells = []
    for task in tasks:
        score = row.scores.get(task)
        ends = f" {interval(*score.interval)}" if score is not None and intervals else ""
        cells.append("" if score is None else percent(score.accuracy) + ends)
    return cells


@table("budgets/accuracy")
def budgets_accuracy() -> str:
    """Average accuracy at five budgets, and the prefill's speed-up."""
    uncut = row_of("budgets")
    pairs = [(method, place) for place in POSITIONS for method in ("flowcut", "random")]
    lines = [["576 (uncut)", average(uncut), "", "", "", "1"]]
    for budget in BUDGETS:
        rows = [row_of("budgets", method, budget, place) for method, place in pairs]
        speedup = rows[0].uncut_seconds / rows[0].costs.seconds.prefill
        lines.append([str(budget), *(f"{average(row)} {of_uncut(row, uncut)}" for row in rows), f"{speedup:.1f}"])
    header = [f"{named(method)}, {place}" for method, place in pairs]
    return markdown(["visual tokens", *header, "prefill, times as fast"], lines)


@table("budgets/tasks")
def budgets_tasks() -> str:
    """Every task at five budgets, and the oracle."""
    uncut = row_of("budgets")
    lines = [["576", "uncut", "", average(uncut), "100%", *task_cells(uncut)]]
    for budget in BUDGETS:
        rows = [row_of("budgets", method, budget, place) for place in POSITIONS for method in ("flowcut", "random")]
        if budget == 64:
            rows.append(row_of("oracle", "oracle", budget, "original"))
        for row in rows:
            names = (str(budget), named(row.plan.method), str(row.plan.positions))
            lines.append([*names, average(row), of_uncut(row, uncut), *task_cells(row)])
    return markdown(["tokens", "method", "positions", "average (95%)", "of uncut", *TASKS], lines)


GROUPS = (TASKS, THINGS, SHAPES)
GROUP_NAMES = ("all six tasks", ", ".join(f"`{task}`" for task in THINGS), ", ".join(f"`{task}`" for task in SHAPES))


@table("budgets/paired")
def budgets_paired() -> str:
    """FlowCut minus random cutting."""
    lines = []
    for place in POSITIONS:
        for budget in BUDGETS:
            pair = [row_of("budgets", method, budget, place) for method in ("flowcut", "random")]
            lines.append([str(budget), place, *(points(difference("budgets", pair, group)) for group in GROUPS)])
    return markdown(["tokens", "positions", *GROUP_NAMES], lines)


@table("budgets/positions")
def budgets_positions() -> str:
    """What original positions give back."""
    lines = []
    for budget in BUDGETS:
        cells = [str(budget)]
        for method in ("flowcut", "random"):
            pair = [row_of("budgets", method, budget, place) for place in reversed(POSITIONS)]
            cells.append(points(difference("budgets", pair)))
        lines.append(cells)
    return markdown(["tokens", "`flowcut`", "`random`"], lines)


@table("budgets/oracle")
def budgets_oracle() -> str:
    """The oracle's 64 patches minus uncut, on both models that it was measured with."""
    lines = []
    for name, version in (("oracle", "0.4.0"), ("original", "0.1.0")):
        pair = (row_of(name, "oracle", 64, "original"), row_of(name))
        lines.append([version, *(points(difference(name, pair, group)) for group in GROUPS)])
    return markdown(["flowcut-mini", *GROUP_NAMES], lines)


@table("budgets/weights")
def budgets_weights() -> str:
    """FlowCut and random cutting on the newest weights and on those before."""
    lines = []
    for version, name in (("0.4.0", "budgets"), ("0.3.0", "budgets-0.3.0"), ("0.2.0", "budgets-0.2.0")):
        uncut = row_of(name)
        behind = "" if name == "budgets" else points(difference("budgets", (row_of("budgets"), uncut)))
        pairs = {place: [row_of(name, one, 64, place) for one in ("flowcut", "random")] for place in POSITIONS}
        choices = (("compact", TASKS), ("compact", THINGS), ("original", TASKS))
        cells = [points(difference(name, pairs[place], tasks)) for place, tasks in choices]
        lines.append([version, average(uncut), behind, *cells])
    header = ["flowcut-mini", "uncut, average (95%)", "0.4.0 minus it"]
    return markdown(
        [*header, "compact, all six tasks", "compact, the four of things", "original, all six tasks"], lines
    )


@table("calibrated/paired")
def calibrated_paired() -> str:
    """The calibrated schedule against the adaptive one."""
    lines = []
    for budget in BUDGETS:
        pair = [row_of("calibrated", method, budget, "compact") for method in (CALIBRATED, "flowcut")]
        lines.append([str(budget), *(average(row) for row in reversed(pair)), points(difference("calibrated", pair))])
    return markdown(
        ["tokens", "adaptive, average (95%)", "calibrated, average (95%)", "calibrated minus adaptive"], lines
    )


@table("mini/accuracy")
def mini_accuracy() -> str:
    """The uncut model on every choice of questions, with intervals and numbers of questions."""
    lines = [["`test-v1`, 150 of each", *task_cells(row_of("budgets"), intervals=True)]]
    for split, name in (("`test-v1`, all", "whole"), ("`new-v1`", "new"), ("`photo-v2`", "photo")):
        row = row_of(name)
        cells = zip(TASKS, task_cells(row, intervals=True), strict=True)
        lines.append([split, *(f"{cell} of {row.scores[task].questions}" if cell else "" for task, cell in cells)])
    return markdown(["questions", *TASKS], lines)


@table("mini/targets")
def mini_targets() -> str:
    """The uncut model, the oracle, and what was aimed at."""
    uncut, oracle = row_of("budgets"), row_of("oracle", "oracle", 64, "original")
    lines = [
        ["all 576", *task_cells(uncut)],
        ["oracle, 64, filled up with random ones, original positions", *task_cells(oracle)],
        ["95% interval of the first row", *(interval(*uncut.scores[task].interval).strip("()") for task in TASKS)],
        ["target with all 576", *(str(TARGETS[task]) for task in TASKS)],
    ]
    return markdown(["kept patches", *TASKS], lines)


@table("mini/right")
def mini_right() -> str:
    """How many questions the uncut model answers rightly."""
    lines = []
    for split, name in (
        ("`test-v1`, 150 of each", "budgets"),
        ("`test-v1`, all", "whole"),
        ("`new-v1`", "new"),
        ("`photo-v2`", "photo"),
    ):
        scores = row_of(name).scores
        asked = [(scores[task].accuracy, scores[task].questions) if task in scores else (0.0, 0) for task in TASKS]
        lines.append([split, *(f"{round(share * total)} of {total}" if total else "" for share, total in asked)])
    return markdown(["questions", *TASKS], lines)


@table("new/tasks")
def new_tasks() -> str:
    """Cut-outs of which 40% were never seen."""
    return short_table("new")


@table("photo/tasks")
def photo_tasks() -> str:
    """Photographs, and what always giving the commonest answer of a task would reach."""
    split, tasks = load_split("photo-v2"), rows_of("photo")[0].scores
    answers = {task: Counter(question.answer for _, question in split.questions(task)) for task in tasks}
    commonest = {task: counted.most_common(1)[0] for task, counted in answers.items()}
    shares = {task: times / answers[task].total() for task, (_, times) in commonest.items()}
    cells = [f"{percent(shares[task])}: {commonest[task][0]}" for task in tasks]
    mean = f"{100 * sum(shares.values()) / len(shares):.1f}"
    return short_table("photo", ["always the commonest answer", "", mean, *cells])


def short_table(name: str, *more: list[str]) -> str:
    """All rows of a table: averages and tasks with their intervals; further lines below."""
    rows = rows_of(name)
    tasks = list(rows[0].scores)
    header = [f"{task} ({rows[0].scores[task].questions})" for task in tasks]
    lines = [
        [named(row.plan.method), str(row.plan.target_num or 576), average(row), *task_cells(row, tasks, intervals=True)]
        for row in rows
    ]
    return markdown(["method", "tokens", "average (95%)", *header], [*lines, *more])
