"""Accuracy on the built-in tasks, uncut and with methods at several budgets, on equal terms."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from ..attaching import detach
from ..checkpoints.loading import LoadedModel
from ..measure.run import Outcome, run
from ..methods import FlowCut
from .asking import Asked, Memory, RowPlan, oracle_patches, pack_answers, packs
from .metrics import score
from .rows import Row
from .split import TASKS, TaskSplit

COST_REPEATS = 3


def choose_questions(
    split: TaskSplit, tasks: Sequence[str], limit: int | None = None, per_task: int | None = None
) -> Asked:
    """The questions of an evaluation.

    Args:
        split: where they come from.
        tasks: names of tasks.
        limit: at most so many questions, of scenes spread evenly over the split; ``None`` for all.
        per_task: so many questions of each task (all, where the split has fewer), spread evenly over as few evenly
            spread scenes as have them; ``None`` for all. Not together with ``limit``.

    Raises:
        ValueError: a task is unknown, or a number is below 1, or both numbers are given.
    """
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown or not tasks:
        raise ValueError(f"Unknown tasks: {', '.join(unknown) or '(none given)'}; known: all, {', '.join(TASKS)}.")
    if limit is not None and per_task is not None:
        raise ValueError("limit and per_task cannot both be given.")
    for name, number in (("limit", limit), ("per_task", per_task)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    asked = [
        (number, scene, [question for question in scene.questions if question.task in tasks])
        for number, scene in enumerate(split.scenes)
    ]
    asked = [entry for entry in asked if entry[2]]
    if per_task is not None:
        return _balanced(asked, tasks, per_task)
    if limit is None:
        return asked
    chosen = asked
    for scenes in range(1, len(asked)):
        spread = asked[:: len(asked) // scenes]
        if sum(len(questions) for _, _, questions in spread) >= limit:
            chosen = spread
            break
    result: Asked = []
    left = limit
    for number, scene, questions in chosen:
        if left:
            result.append((number, scene, questions[:left]))
            left -= len(questions[:left])
    return result


def _balanced(asked: Asked, tasks: Sequence[str], per_task: int) -> Asked:
    """``per_task`` questions of each task, see :func:`choose_questions`."""
    chosen = asked
    for scenes in range(1, len(asked)):
        spread = [asked[place] for place in _spread(len(asked), scenes)]
        counts = Counter(question.task for _, _, questions in spread for question in questions)
        if all(counts[task] >= per_task for task in tasks):
            chosen = spread
            break
    kept: set[tuple[int, int]] = set()
    for task in tasks:
        places = [
            (number, place)
            for number, _, questions in chosen
            for place, question in enumerate(questions)
            if question.task == task
        ]
        kept |= {places[index] for index in _spread(len(places), min(per_task, len(places)))}
    balanced = [
        (number, scene, [question for place, question in enumerate(questions) if (number, place) in kept])
        for number, scene, questions in chosen
    ]
    return [entry for entry in balanced if entry[2]]


def _spread(total: int, wanted: int) -> list[int]:
    """``wanted`` of ``total`` places, evenly spread."""
    return [index * total // wanted for index in range(wanted)]


def evaluate_row(
    loaded: LoadedModel,
    plan: RowPlan,
    asked: Asked,
    *,
    batch_size: int,
    memory: Memory,
    progress: Callable[[int], None] = lambda scenes: None,
) -> Row:
    """Answer all questions with one method.

    Args:
        loaded: the model; whatever is attached to it is taken off.
        plan: the method.
        asked: the questions.
        batch_size: at most so many questions in one pass; it does not change the answers.
        memory: what rows of the same model and questions have in common.
        progress: called with the number of scenes done.

    Raises:
        UnsupportedModelError: the method does not fit the model.
    """
    detach(loaded.model)
    costs, uncut_seconds = measure_costs(loaded, plan, asked)
    said: list[str] = []
    done = 0
    for pack in packs(asked, batch_size):
        said += pack_answers(loaded, plan, pack, batch_size, memory)
        done += len(pack)
        progress(done)
    wanted = [(question.task, question.answer) for _, _, questions in asked for question in questions]
    answers_of: dict[str, list[str]] = defaultdict(list)
    truth_of: dict[str, list[str]] = defaultdict(list)
    for (task, truth), answer in zip(wanted, said, strict=True):
        answers_of[task].append(answer)
        truth_of[task].append(truth)
    scores = {task: score(task, answers_of[task], truth_of[task]) for task in TASKS if task in truth_of}
    return Row(plan, scores, costs, uncut_seconds, said)


def measure_costs(loaded: LoadedModel, plan: RowPlan, asked: Asked) -> tuple[Outcome, float]:
    """The costs of the first question's prompt, and the uncut model's prefill seconds measured in turns with it."""
    number, scene, questions = asked[0]
    method = plan.build(oracle_patches(plan, number, scene, questions[0]))
    compared = method or FlowCut(retain_ratio=1 / 9)
    result = run(loaded, compared, scene.picture(), questions[0].text, max_new_tokens=1, repeats=COST_REPEATS)
    return (result.uncut if method is None else result.cut), result.uncut.seconds.prefill
