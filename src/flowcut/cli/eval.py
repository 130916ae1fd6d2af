"""The command ``flowcut eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape

from .harness_rows import check_harness_only, check_harness_options, checkpoint_of, run_harness_rows
from .options import (
    DEFAULT_MODEL,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    prepare_mini,
    printable,
    progress_bar,
    quiet_libraries,
    quiet_transformers,
    recalled,
    user_errors,
    warn_of_budget,
)
from .tables import print_tables

if TYPE_CHECKING:
    from ..checkpoints.loading import LoadedModel
    from ..checkpoints.memory import Memory
    from ..methods import Method
    from ..tasks.asking import Asked, RowPlan
    from ..tasks.rows import Row, RowFile

BUDGETS = "192,128,64,32"


def eval_command(
    model: ModelOption = DEFAULT_MODEL,
    tasks: Annotated[str, typer.Option(help="all, or names separated by commas.")] = "all",
    split_name: Annotated[
        str, typer.Option("--split", help="test-v1, new-v1 (with cut-outs held out from training) or photo-v2.")
    ] = "test-v1",
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--method",
            "--methods",
            help="Names separated by commas, settings in brackets: flowcut(history=0.7),visionzip; also oracle. By "
            "default what the checkpoint was trained with, else flowcut.",
            show_default=False,
        ),
    ] = None,
    target_num: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help=f"Budgets, separated by commas; what the checkpoint was trained with, else {BUDGETS}.",
            show_default=False,
        ),
    ] = None,
    positions: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="compact, original, or both; by default each method's own.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions in one pass; does not change the answers.")] = 16,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="At most so many questions, for a quick look.", show_default=False),
    ] = None,
    per_task: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="So many questions of each task, of as few scenes.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for rows, tables and figure.")] = Path("runs/eval"),
    efficiency: Annotated[
        int, typer.Option(min=0, help="Questions of the efficiency report, each also answered uncut; 0 for no report.")
    ] = 4,
    harness: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="lmms-eval: run that harness's tasks, given with --tasks.", show_default=False),
    ] = None,
    wrapped: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The harness's own class, such as llava_hf; by default ours.", show_default=False),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share a row's questions (harness).")] = 1,
    include_path: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A folder with tasks of your own (harness).", show_default=False),
    ] = None,
    model_args: Annotated[str, typer.Option(help="More arguments for the harness's class: NAME=VALUE,...")] = "",
    force_simple: Annotated[
        bool, typer.Option("--force-simple", help="The harness's simple requests; multiple choice needs them.")
    ] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy and costs on the built-in tasks, or on those of lmms-eval.

    Finished rows in the output folder are not measured again, and its tables show all that were measured on the same
    questions. Several processes may share a folder, each with methods of its own.
    """
    errors = Console(stderr=True)
    with user_errors():
        if harness is not None:
            from ..harness.rows import HarnessSettings, plan_harness_rows

            given = {"--split": split_name != "test-v1", "--positions": positions, "--per-task": per_task}
            check_harness_options(harness, tasks, [name for name, value in given.items() if value])
            common = HarnessSettings(
                model=checkpoint_of(model, errors),
                tasks=tuple(names_in(tasks)),
                wrapped=wrapped,
                batch_size=batch_size,
                limit=limit,
                device=device,
                dtype=dtype,
                include_path=None if include_path is None else str(include_path.absolute()),
                model_args=model_args,
                force_simple=force_simple,
                pairs=efficiency > 0,
            )
            methods, budgets = rows_wanted(method, target_num, recalled(model, errors))
            harness_rows = plan_harness_rows(methods, budgets, common)
            run_harness_rows(harness_rows, output, processes, errors, as_json=as_json)
            return
        check_harness_only(wrapped, processes, include_path, model_args, force_simple)
        if model == DEFAULT_MODEL:
            prepare_mini(errors)
        with quiet_libraries(errors):
            with errors.status(f"Loading {printable(model)} ..."):
                quiet_transformers()
                from ..checkpoints.loading import load_model
                from ..tasks import TASKS, load_split
                from ..tasks.efficiency import efficiency_reports
                from ..tasks.evaluation import choose_questions
                from ..tasks.rows import RowFile
                from ..view.efficiency import save_efficiency
                from ..view.report import cells_of, figures_of, header_of, save_report, uncut_of

                memory = recalled(model, errors)
                methods, budgets = rows_wanted(method, target_num, memory)
                plans = plan_rows(methods, budgets, names_in(positions or ""))
                warn_of_budget(memory, cutting(plans), errors)
                split = load_split(split_name)
                asked = choose_questions(split, list(TASKS) if tasks == "all" else names_in(tasks), limit, per_task)
                loaded = load_model(model, device, dtype)
            identity = {
                "model": checkpoint_name(model),
                "split": split.name,
                "tasks": tasks,
                "questions": sum(len(questions) for _, _, questions in asked),
                "limit": limit,
                "per_task": per_task,
                "dtype": str(loaded.dtype).removeprefix("torch."),
                "device": str(loaded.device),
            }
            store = RowFile(output)
            rows = measure(loaded, plans, asked, identity, store, batch_size, errors)
            store.arrange(identity, plans)
            paths = save_report(output, identity, store.table(identity))
            if efficiency:
                with progress_bar(errors) as bar:
                    advance = bar.track(plans, description="efficiency: rows")
                    reports = efficiency_reports(loaded, advance, asked, identity, output, efficiency)
                paths.append(save_efficiency(output, reports))
        uncut = uncut_of(rows)
        if as_json:
            typer.echo(json.dumps({**identity, "rows": [figures_of(row, uncut) for row in rows]}))
            return
        print_tables(Console(), header_of(rows), [cells_of(row, uncut) for row in rows])
        Console(soft_wrap=True).print("Written: " + ", ".join(printable(path) for path in paths))


def checkpoint_name(model: str) -> str:
    """What tells two models apart: for flowcut-mini also which weights."""
    from ..checkpoints.mini import MINI, mini_folder

    return mini_folder().name if model == MINI else model


def rows_wanted(
    methods: str | None, budgets: str | None, memory: Memory | None, usual: str = BUDGETS
) -> tuple[str, list[int]]:
    """Methods and budgets: those that are given, else those the checkpoint was trained with, else the usual ones.

    Raises:
        ValueError: the checkpoint was trained with a share of the tokens, and no budgets are given.
    """
    from ..methods.naming import describe

    if budgets is None and memory is not None:
        if memory.method.target_num is None:
            raise ValueError(
                f"The checkpoint was trained with {memory}, a share of an image's tokens; this command counts them. "
                "Give budgets with --target-num."
            )
        budgets = str(memory.method.target_num)
    if methods is None:
        methods = "flowcut" if memory is None else describe(memory.method)
    return methods, budgets_in(usual if budgets is None else budgets)


def cutting(plans: list[RowPlan]) -> list[Method]:
    """The methods of all rows but the uncut one."""
    built = (plan.build(tuple(range(plan.target_num))) for plan in plans if plan.target_num is not None)
    return [method for method in built if method is not None]


def names_in(text: str) -> list[str]:
    """Names separated by commas."""
    return [name for name in dict.fromkeys(part.strip() for part in text.split(",")) if name]


def budgets_in(text: str) -> list[int]:
    """Budgets separated by commas.

    Raises:
        ValueError: one is not a whole number.
    """
    try:
        return [int(part) for part in names_in(text)]
    except ValueError as error:
        raise ValueError(
            f"--target-num takes whole numbers separated by commas, such as 192,64; got {text!r}."
        ) from error


def plan_rows(methods: str, budgets: list[int], positions: list[str]) -> list[RowPlan]:
    """Uncut first, then every method at every budget; names, settings and budgets are checked before anything runs.

    Args:
        methods: see :func:`~flowcut.methods.naming.read_expressions`.
        budgets: visual tokens per image.
        positions: see :class:`RowPlan`; none for each method's own.

    Raises:
        ValueError: an unknown method, setting or positions, or a bad budget.
    """
    from ..methods import METHODS
    from ..methods.naming import read_expressions
    from ..tasks.asking import ORACLE, UNCUT, RowPlan
    from ..tasks.oracle import Oracle

    plans = [RowPlan(UNCUT)]
    places: list[Any] = [*positions] or [None]
    for expression in read_expressions(methods, {**METHODS, ORACLE: Oracle}):
        given = dict(expression.settings)
        if given and expression.method is Oracle:
            raise ValueError(f"{ORACLE} takes no settings, got {expression}.")
        if expression.has_budget:
            raise ValueError(f"{expression}: the budgets of an evaluation are given with --target-num.")
        if positions and "positions" in given:
            raise ValueError(f"{expression}: positions are given twice, here and with --positions.")
        for place in places:
            for budget in budgets:
                plan = RowPlan(str(expression), budget, place)
                plan.build(tuple(range(budget)))
                plans.append(plan)
    return plans


def measure(
    loaded: LoadedModel,
    plans: list[RowPlan],
    asked: Asked,
    identity: dict[str, Any],
    store: RowFile,
    batch_size: int,
    errors: Console,
) -> list[Row]:
    """Every row, from the file of rows where it is there already; a method that refuses the model is left out."""
    from ..errors import UnsupportedModelError
    from ..tasks.asking import Memory
    from ..tasks.evaluation import evaluate_row

    rows = []
    with progress_bar(errors) as bar, Memory(loaded) as memory:
        for plan in plans:
            row = store.find(identity, plan)
            if row is None:
                task = bar.add_task(f"{escape(plan.label)}: scenes", total=len(asked))

                def report(scenes: int, task: Any = task) -> None:
                    bar.update(task, completed=scenes)

                try:
                    row = evaluate_row(loaded, plan, asked, batch_size=batch_size, memory=memory, progress=report)
                except (UnsupportedModelError, ValueError) as error:
                    errors.print(f"[yellow]{escape(plan.method)} is left out: {escape(str(error))}[/]", soft_wrap=True)
                    continue
                store.add(identity, row)
            rows.append(row)
    return rows
