"""The pictures to try the page on are marked as flowcut-mini answers them."""

from __future__ import annotations

import shipped

from flowcut.app.answering import Desk
from flowcut.app.samples import SAMPLES
from flowcut.checkpoints.loading import load_model
from flowcut.tasks.metrics import right


def test_the_marks_are_true() -> None:
    shipped.require_mini()
    desk = Desk(load_model("flowcut-mini", "cpu", "float32"), max_new_tokens=12)
    for sample in SAMPLES:
        (now,) = desk.answers(sample.picture, sample.text, [])
        assert now.uncut.outcome is not None
        assert right(now.uncut.outcome.answer, sample.found[1].answer) is sample.right, sample
        assert sample.label(True).startswith("answered rightly") is sample.right and "answered" not in sample.label(
            False
        )
    assert {sample.right for sample in SAMPLES if sample.split == "photo-v2"} == {True, False}
