"""One step of training that changes nothing, and what it must log: for the tests of other people's training code."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import oracle
import torch
import zoo
from torch import Tensor

from flowcut import DivPrune, FastV, FlowCut, Method, attach

CUTS: dict[str, Callable[..., Method]] = {"tower": FlowCut, "projector": DivPrune, "decoder": FastV}
BUDGET = 9
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "learning_rate": 0.0,
    "max_steps": 1,
    "disable_tqdm": True,
}
"""One step that changes nothing, so that the model can be asked again afterwards."""


def new_model() -> Any:
    """A tiny LLaVA for the tiny processor."""
    return copy.deepcopy(zoo.case("llava, clip").model)


def by_hand(model: Any, method: Method, batch: dict[str, Tensor]) -> tuple[oracle.Expected, list[oracle.Row]]:
    """What the model must return for a batch, without its loss; the method is attached for it and taken off."""
    accepted = set(inspect.signature(type(model).forward).parameters) - {"labels"}
    inputs = {name: value for name, value in batch.items() if name in accepted}
    with attach(model, method) as handle, torch.no_grad():
        encoded = oracle.encode(model, inputs)
        model(**inputs)
        trace = handle.trace
    with torch.no_grad():
        rows = oracle.compute(model, method, inputs, encoded, trace)
    assert any(len(row.columns[-1]) < int(mask.sum()) for row, mask in zip(rows, inputs["attention_mask"], strict=True))
    return oracle.lay_out(rows, inputs["attention_mask"]), rows


def log_probs(rows: list[oracle.Row], labels: Tensor) -> list[Tensor]:
    """Of every row the log-probabilities of its labels, each given the kept tokens before it."""
    found = []
    for row, wanted in zip(rows, labels, strict=True):
        following = wanted[row.columns[-1][1:]]
        scores = row.logits[:-1].log_softmax(dim=-1)[following != -100]
        found.append(scores.gather(1, following[following != -100][:, None])[:, 0])
    return found


def logged(trainer: Any) -> dict[str, float]:
    """What the trainer logs after its one step."""
    trainer.train()
    return dict(trainer.state.log_history[0])


def smoothed(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Cross entropy with label smoothing: logits and labels of the same column."""
    chosen = labels != -100
    return torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], label_smoothing=epsilon)
