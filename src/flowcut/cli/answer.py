"""The command ``flowcut answer``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console

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
from .run import chosen_method
from .score import print_score

if TYPE_CHECKING:
    from ..llava_files.job import Job
    from ..llava_files.run import Summary
    from ..llava_files.scores import Score


def answer_command(
    questions: Annotated[
        Path,
        typer.Option(help="A question file of LLaVA's evaluation: .jsonl, .json (ScienceQA) or .tsv (MMBench)."),
    ],
    output: Annotated[Path, typer.Option(help="The answer file.")],
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The folder with the pictures; MMBench's file holds its own.", show_default=False),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="How to cut; `flowcut methods` lists them; or uncut. By default what the checkpoint was trained with, "
            "else flowcut.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method.", show_default=False),
    ] = None,
    target_num: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Visual tokens of each image; what the checkpoint was trained with, else 64, if neither is given.",
            show_default=False,
        ),
    ] = None,
    retain_ratio: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share of them to keep instead.", show_default=False),
    ] = None,
    conv_mode: Annotated[
        str, typer.Option(help="The prompt: vicuna_v1, as LLaVA's scripts write it, or model, its own chat template.")
    ] = "vicuna_v1",
    max_new_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Longest answer; 128, or 1024 for .json and .tsv, if not given.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions in one pass; does not change the answers.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="How many share the questions, a GPU each.")] = 1,
    num_chunks: Annotated[int, typer.Option(min=1, help="Pieces of the file, for several machines.")] = 1,
    chunk_idx: Annotated[int, typer.Option(min=0, help="The piece that is asked here, from 0.")] = 0,
    lang: Annotated[str, typer.Option(help="en or cn: the instruction behind MMBench's questions.")] = "en",
    all_rounds: Annotated[bool, typer.Option(help="Ask MMBench's questions once for every option.")] = False,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Only so many of the file's first entries.", show_default=False),
    ] = None,
    score: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Annotations of POPE, TextVQA or ScienceQA, to judge the answers.", show_default=False),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question file of LLaVA's evaluation, in the form that LLaVA's scripts judge.

    Greedy, in the file's order. What is answered already is not asked again. Exit status 1 says that questions were
    left out because their pictures could not be read; 2 that the run ended before its end.
    """
    errors = Console(stderr=True)
    with user_errors():
        if model == DEFAULT_MODEL:
            prepare_mini(errors)
        with quiet_libraries(errors):
            with errors.status("Starting ..."):
                quiet_transformers()
                from ..llava_files.job import UNCUT, Job
                from ..llava_files.questions import QuestionFile

                if method == UNCUT and (settings or target_num is not None or retain_ratio is not None):
                    raise ValueError("uncut takes no settings and no budget.")
                if score is not None and num_chunks > 1:
                    raise ValueError("A piece has no score: join the answers of all pieces, then use flowcut score.")
                chosen = None
                if method != UNCUT:
                    memory = recalled(model, errors)
                    chosen = chosen_method(method, settings or [], target_num, retain_ratio, memory)
                    warn_of_budget(memory, [chosen], errors)
                file = QuestionFile(questions, lang, all_rounds, limit, num_chunks, chunk_idx)
                job = Job(
                    questions=file,
                    output=output,
                    model=model,
                    images=images,
                    method=chosen,
                    mode=conv_mode,
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    processes=processes,
                    device=device,
                    dtype=dtype,
                )
            summary = ask(job, errors)
            judged = judge(job, summary, score)
        if as_json:
            told = {**summary.as_dict(), "score": None if judged is None else judged.as_dict()}
            typer.echo(json.dumps(told))
        else:
            print_summary(summary)
            if judged is not None:
                print_score(judged)
    if summary.trouble:
        left = f"{len(summary.trouble)} of {summary.questions} questions have no answer; run again to ask them alone."
        errors.print(f"[bold red]Error:[/] [red]{left}[/]", soft_wrap=True)
        raise typer.Exit(1)


def ask(job: Job, errors: Console) -> Summary:
    """The answers, with a progress bar."""
    from ..llava_files.run import answer_file

    with progress_bar(errors) as bar:
        task = bar.add_task("questions", total=job.questions.count())

        def report(kind: str, what: Any) -> None:
            if kind == "done":
                bar.advance(task, what)
            else:
                bar.console.print(f"[yellow]Left out: {printable(what)}[/]", soft_wrap=True)

        return answer_file(job, report)


def judge(job: Job, summary: Summary, annotations: Path | None) -> Score | None:
    """The score of the answers, where it is asked for and every question has one."""
    if annotations is None or summary.trouble:
        return None
    from ..llava_files.scores import score_answers

    file = job.questions
    asked = [one.first["question_id"] for one in file.read()] if file.limit is not None else None
    return score_answers(job.output, annotations, file.path, asked)


def print_summary(summary: Summary) -> None:
    """Print what became of the file, in a line."""
    console = Console(soft_wrap=True)
    tokens = "" if summary.visual_tokens is None else f", {summary.visual_tokens:.1f} visual tokens a picture"
    console.print(
        f"{printable(summary.output)}: {summary.answers} of {summary.questions} questions answered, {summary.asked} of "
        f"them asked now; {summary.seconds:.1f} s of asking{tokens}."
    )
