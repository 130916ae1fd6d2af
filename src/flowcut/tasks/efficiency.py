"""The efficiency report of a row of the built-in tasks: some of its questions, each answered uncut as well."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..attaching import detach
from ..checkpoints.loading import LoadedModel
from ..errors import UnsupportedModelError
from ..inputs.prompting import model_inputs
from ..measure.efficiency import Recorder
from ..measure.efficiency_report import gathered, read_reports, write_reports
from .asking import MAX_NEW_TOKENS, Asked, RowPlan, oracle_patches
from .rows import Identity, row_key


def efficiency_of(loaded: LoadedModel, plan: RowPlan, asked: Asked, questions: int) -> dict[str, Any]:
    """Answer the first question of each of some scenes by ``generate()``, one at a time, cut and uncut in turns.

    Args:
        loaded: the model; whatever is attached to it is taken off.
        plan: the row.
        asked: all its questions.
        questions: of how many scenes, spread evenly over them; one more comes first, which does not count.

    Returns:
        See :func:`~flowcut.measure.efficiency_report.gathered`.

    Raises:
        UnsupportedModelError, ValueError: the method does not fit the model.
    """
    detach(loaded.model)
    wanted = min(questions, len(asked))
    chosen = [asked[0], *(asked[place * len(asked) // wanted] for place in range(wanted))]
    patches = oracle_patches(plan, chosen[0][0], chosen[0][1], chosen[0][2][0])
    recorder = Recorder(loaded.model, plan.build(patches), lambda call: True)
    model: Any = loaded.model
    try:
        for _, scene, some in chosen:
            recorder.start()
            inputs = model_inputs(loaded.processor, scene.picture(), some[0].text)
            inputs = inputs.to(loaded.device, dtype=loaded.dtype)
            recorder.generate(model.generate, **inputs, do_sample=False, num_beams=1, max_new_tokens=MAX_NEW_TOKENS)
        return gathered([recorder.as_dict(batch_size=1)])
    finally:
        recorder.close()


def efficiency_reports(
    loaded: LoadedModel, plans: Iterable[RowPlan], asked: Asked, identity: Identity, folder: Path, questions: int
) -> dict[str, dict[str, Any]]:
    """The reports of rows by their labels; those that the folder holds are not measured again.

    A row whose method does not fit the model is left out, as it is in the table of accuracies.
    """
    reports = read_reports(folder)
    found = {}
    for plan in plans:
        key = report_key(identity, plan, questions)
        if key not in reports:
            try:
                reports[key] = efficiency_of(loaded, plan, asked, questions)
            except (UnsupportedModelError, ValueError):
                continue
            write_reports(folder, reports)
        found[plan.label] = reports[key]
    return found


def report_key(identity: Identity, plan: RowPlan, questions: int) -> str:
    """What tells reports in one folder apart."""
    return f"{plan.label} [{row_key(identity, plan)}, {questions}]"
