"""Outputs and losses by columns, however the model is called, and what a call that is broken off leaves behind."""

from __future__ import annotations

from typing import Any

import padding
import pytest
import tiny
import torch
from torch import Tensor, nn

from flowcut import DivPrune, FastV, FlowCut, Method, attach
from flowcut.algorithm.columns import keep_columns
from flowcut.stages.forward_pass import at_work
from flowcut.stages.sequence.outputs import without_next_of_cut

METHODS: tuple[Method, ...] = (FlowCut(target_num=9), DivPrune(target_num=9), FastV(target_num=9, layers=1))
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


@pytest.fixture
def model() -> Any:
    return tiny.tiny_model()


def labelled() -> dict[str, Tensor]:
    """Prompts with labels on all columns, placeholders included, but for padding and the first token of every row."""
    prompts = [tiny.prompt(1, 8, 1), tiny.prompt(0, 60, 2), tiny.prompt(2, 4, 3)]
    inputs = padding.spread(tiny.batch(prompts, "left"), "both")
    mask = inputs["attention_mask"].bool()
    labels = inputs["input_ids"].masked_fill(~mask | (mask.cumsum(dim=1) == 1), -100)
    return {**inputs, "labels": labels, "pixel_values": tiny.pictures(3)}


@every_method
@torch.no_grad()
def test_forward_called_by_itself_is_as_calling_the_module(model: Any, method: Method) -> None:
    inputs = labelled()
    alone = {name: value for name, value in inputs.items() if name != "labels"}
    with attach(model, method):
        expected = model(**inputs)
        found = model.forward(**inputs)
        assert torch.equal(found.loss, expected.loss) and torch.equal(found.logits, expected.logits)
        states = model.model(**alone).last_hidden_state
        assert torch.equal(model.model.forward(**alone).last_hidden_state, states)
    assert not torch.equal(model.forward(**inputs).loss, expected.loss)


def interrupt(*given: Any) -> None:
    raise KeyboardInterrupt


@every_method
@torch.no_grad()
def test_a_call_that_is_interrupted_leaves_no_pass_behind(model: Any, method: Method) -> None:
    inputs = labelled()
    alone = {name: value for name, value in inputs.items() if name != "labels"}
    parts: list[nn.Module] = [
        model.model.vision_tower.encoder.layers[1].mlp,
        model.model.multi_modal_projector,
        model.model.language_model.layers[1],
        model.lm_head,
    ]
    with attach(model, method):
        expected = model(**inputs)
        for part in parts:
            calls = [lambda: model(**inputs), lambda: model.generate(**alone, max_new_tokens=2)]
            for call in calls if part is model.lm_head else [*calls, lambda: model.model(**alone)]:
                handle = part.register_forward_hook(interrupt)
                with pytest.raises(KeyboardInterrupt):
                    call()
                handle.remove()
                assert at_work() is None
                again = model(**inputs)
                assert torch.equal(again.logits, expected.logits) and torch.equal(again.loss, expected.loss)


@every_method
@pytest.mark.parametrize("shifted", [False, True])
@torch.no_grad()
def test_the_loss_ignores_cut_columns_whatever_number_stands_for_ignored(
    model: Any, method: Method, shifted: bool
) -> None:
    inputs = labelled()
    labels = inputs["labels"]
    with attach(model, method):
        expected = model(**inputs).loss
        inputs["labels"] = labels.masked_fill(labels == -100, -7)
        given: dict[str, Any] = {"ignore_index": -7}
        if shifted:
            given["shift_labels"] = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-7)
        torch.testing.assert_close(model(**inputs, **given).loss, expected)


def test_shifted_labels_lose_those_whose_next_column_is_cut() -> None:
    cut = keep_columns(torch.tensor([[True, False, True, True, False]]), None)
    shifted = torch.tensor([[11, 12, 13, 14, 15]])
    assert without_next_of_cut(shifted, cut, -9).tolist() == [[-9, 12, 13, -9, 15]]


@every_method
@pytest.mark.parametrize("count", [3, 20, 70])
@torch.no_grad()
def test_labels_of_the_last_columns_go_with_their_logits(model: Any, method: Method, count: int) -> None:
    inputs = labelled()
    labels = inputs.pop("labels")
    # What predicts the first of them is not asked for.
    all_columns = labels.clone()
    all_columns[:, : labels.shape[1] - count + 1] = -100
    with attach(model, method):
        expected = model(**inputs, labels=all_columns).loss
        torch.testing.assert_close(model(**inputs, labels=labels[:, -count:], logits_to_keep=count).loss, expected)
        with pytest.raises(ValueError, match="labels have"):
            model(**inputs, labels=labels[:, -count:], logits_to_keep=torch.arange(count))
