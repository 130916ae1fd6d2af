"""A question file from beginning to end, going on where a run before was ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FlowCutError
from .job import Job
from .parts import Parts
from .processes import Report, in_processes, shares_of, work


@dataclass(frozen=True)
class Summary:
    """What became of a question file.

    Attributes:
        output: the answer file.
        questions: how many there are.
        answers: how many have an answer; the others' pictures could not be read.
        asked: how many were asked now, and not in a run before.
        seconds: of asking, summed over all processes and runs, without loading the model.
        visual_tokens: those that entered the language model, mean over the questions with a picture; ``None`` if uncut.
        trouble: a message for every question without an answer.
    """

    output: Path
    questions: int
    answers: int
    asked: int
    seconds: float
    visual_tokens: float | None
    trouble: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return {**vars(self), "output": str(self.output)}


def answer_file(job: Job, report: Report = lambda kind, what: None) -> Summary:
    """Answer all questions of a file that have no answer yet, and write the answer file.

    Args:
        job: see there.
        report: told how it goes.

    Returns:
        What became of it. Where questions have no answer, their answers are missing in the answer file, and the next
        run asks them again.

    Raises:
        FlowCutError: a process was ended, the disk is full, or another one writes the same file; what was answered is
            kept, and the same job goes on with the rest.
        ValueError: a bad question file or number, or an answer file of another job.
    """
    for name in ("batch_size", "processes", "new_tokens"):
        if getattr(job, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(job, name)}.")
    if job.images is not None and not job.images.is_dir():
        raise FileNotFoundError(f"No folder with images found at {str(job.images)!r}.")
    total = job.questions.count()
    parts = Parts(job.output, job.identity(), total)
    stored = parts.finished()
    if stored is not None:
        report("done", total)
        return Summary(job.output, **stored["summary"], asked=0)
    trouble: list[str] = []

    def told(kind: str, what: Any) -> None:
        if kind == "trouble":
            trouble.append(what)
        report(kind, what)

    with parts.opened():
        missing = parts.missing()
        report("done", total - sum(missing))
        shares = shares_of(missing, job.processes, parts)
        if len(shares) == 1:
            work(job, shares[0], told)
        elif shares:
            in_processes(job, shares, told)
        costs = parts.merge()
        mean = costs["visual_tokens"] / costs["pictures_cut"] if costs["pictures_cut"] else None
        figures = {"questions": total, "answers": costs["answers"], "seconds": costs["seconds"], "visual_tokens": mean}
        if costs["answers"] == total:
            parts.close({"summary": figures})
        elif not trouble:
            raise FlowCutError(
                f"{total - costs['answers']} of {total} questions have no answer. Run the command again."
            )
    return Summary(job.output, **figures, asked=sum(missing), trouble=trouble)
