"""The desk behind the page: one model, asked by several people, in turns."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoint
import tiny_video
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from flowcut import CDPruner, DivPrune, FlowCut, FlowCutPlus, SparseVLM, UnsupportedModelError
from flowcut.app.answering import Answers, Desk
from flowcut.app.drawing import draw_grid, draw_steps, seen, steps_of, table_html
from flowcut.attaching import handle_of
from flowcut.checkpoints.loading import load_model
from flowcut.inputs.clips import Clip
from flowcut.measure.run import run

METHODS = [FlowCut(target_num=9), FlowCutPlus(target_num=9), CDPruner(target_num=9), DivPrune(target_num=4)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tiny_checkpoint.save_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return Desk(load_model(str(folder), "cpu", "float32"), max_new_tokens=4)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8))


def asked(desk: Desk, seed: int = 0) -> list[Answers]:
    return list(desk.answers(picture(seed), "word5 ?", METHODS))


def test_answers_come_one_by_one_and_are_those_of_flowcut_run(desk: Desk) -> None:
    came = asked(desk)
    assert [len(now.cut) for now in came] == [0, 1, 2, 3, 4]
    assert handle_of(desk.loaded.model) is None
    for method, answered in zip(METHODS, came[-1].cut, strict=True):
        expected = run(desk.loaded, method, picture(), "word5 ?", max_new_tokens=4, repeats=1)
        assert answered.outcome is not None and answered.image is not None
        assert answered.outcome.answer == expected.cut.answer
        assert answered.outcome.visual_tokens == expected.cut.visual_tokens
        assert torch.equal(answered.image.kept, expected.images[0].kept)
        uncut = came[-1].uncut.outcome
        assert uncut is not None and uncut.answer == expected.uncut.answer and uncut.flops == expected.uncut.flops


def test_the_slider_goes_from_the_whole_picture_to_what_the_last_layer_saw(desk: Desk) -> None:
    now = asked(desk)[-1]
    for answered in now.cut:
        steps = steps_of(answered)
        lengths = [len(step.kept) for step in steps]
        assert lengths[0] == 36 and lengths == sorted(set(lengths), reverse=True)
        assert answered.at_the_end is not None and torch.equal(steps[-1].kept, answered.at_the_end)
        assert answered.image is not None
        drawn = draw_steps(seen(desk, now), answered.image, steps)
        assert [f": {length} of 36" in one for length, one in zip(lengths, drawn.split("<div")[1:], strict=True)]
        assert drawn.count(" hidden>") == len(steps) - 1 and " hidden>" not in drawn.rpartition("<div")[2]
    assert draw_grid(seen(desk, now), now).count("data:image/png") == 1


def test_a_method_that_refuses_is_a_line_with_its_reason(desk: Desk) -> None:
    *_, now = desk.answers(picture(), "word5 ?", [SparseVLM(target_num=9), FlowCut(target_num=9)])
    refused, right = now.cut
    assert refused.outcome is None and "decoder layers [2, 6, 15]" in refused.refusal and right.outcome is not None
    table = table_html(now, 0)
    assert refused.refusal.split(".")[0].replace("'", "&#x27;") in table and table.count("<tr>") == 4


def test_what_a_model_answers_is_not_html(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk.loaded.processor, "decode", lambda *_, **__: "<script>alert(1)</script>", raising=False)
    *_, now = desk.answers(picture(), "word5 ?", METHODS[:1])
    table = table_html(now, 0)
    assert "<script>" not in table and "&lt;script&gt;" in table


def test_visitors_who_come_at_once_get_what_each_gets_alone(desk: Desk) -> None:
    alone = [asked(desk, seed)[-1] for seed in range(4)]
    found: dict[int, Any] = {}

    def visit(seed: int) -> None:
        found[seed] = asked(desk, seed)[-1]

    visitors = [threading.Thread(target=visit, args=(seed,)) for seed in range(4)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    for seed, expected in enumerate(alone):
        for one, other in zip(found[seed].cut, expected.cut, strict=True):
            assert one.outcome.answer == other.outcome.answer and torch.equal(one.image.kept, other.image.kept)


def test_who_leaves_in_the_middle_leaves_the_model_as_it_was(desk: Desk) -> None:
    answers = desk.answers(picture(), "word5 ?", METHODS)
    next(answers), next(answers)
    answers.close()
    assert handle_of(desk.loaded.model) is None and len(asked(desk)) == 5


def test_clips(desk: Desk, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 60, 80, 3), dtype=np.uint8)
    clip = Clip(frames, VideoMetadata(total_num_frames=4, fps=1.0, frames_indices=[0, 1, 2, 3]))
    with pytest.raises(UnsupportedModelError, match="takes no videos"):
        next(desk.answers(clip, "word5 ?", METHODS))
    folder = tiny_video.save_checkpoint(tmp_path / "model", "video_llava")
    films = Desk(load_model(str(folder), "cpu", "float32"), max_new_tokens=2)
    *_, now = films.answers(clip, "word5 ?", [FlowCut(target_num=9), FlowCutPlus(target_num=9)])
    shown = seen(films, now)
    assert len(shown) == 4 and draw_grid(shown, now).startswith("<img")
    for answered in now.cut:
        assert answered.image is not None
        steps = steps_of(answered)
        assert draw_steps(shown, answered.image, steps).count("data:image/jpeg") == len(steps) > 1
