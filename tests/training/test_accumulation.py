"""Gradient accumulation on every family: what two micro-batches give together.

transformers' Trainer counts the labels of all micro-batches and hands the number to the model's loss, or, for models
that do not accept it, takes the mean over the micro-batches. Both are compared with losses by hand (``oracle.py``).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from training_runs import SETTINGS, by_hand, log_probs, logged
from transformers import Trainer, TrainingArguments

from flowcut import FlowCut, attach
from flowcut.models import find_parts

METHOD = FlowCut(retain_ratio=0.3)
NAMES = [name for name in zoo.CASES if name not in ("llava, siglip", "llava, dinov2 with registers")]


def micro_batches(case: zoo.Case) -> list[dict[str, Tensor]]:
    """One sample each; labels on the text behind the image, of the second on two tokens alone."""
    batches = []
    for number, sample in enumerate(case.samples):
        inputs = case.together([sample])
        ids = inputs["input_ids"]
        visual = torch.isin(ids, torch.tensor(list(find_parts(case.model)[1].placeholders.values())))
        answer = torch.arange(ids.shape[1]) > int(visual.nonzero()[-1, 1])
        if number:
            answer[:-2] = False
        batches.append({**inputs, "labels": ids.masked_fill(~answer, -100)})
    return batches


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_have_the_loss_over_all_kept_tokens(name: str, tmp_path: Path) -> None:
    case = zoo.case(name)
    model, batches = copy.deepcopy(case.model), micro_batches(case)
    losses = [-torch.cat(log_probs(by_hand(model, METHOD, batch)[1], batch["labels"])) for batch in batches]
    count = sum(len(own) for own in losses)
    assert len(losses[0]) != len(losses[1])
    over_all = float(torch.cat(losses).mean())

    with attach(model, METHOD):
        found = [model(**batch, num_items_in_batch=count).loss for batch in batches]
        (found[0] + found[1]).backward()
        assert float((found[0] + found[1]).detach()) == pytest.approx(over_all, abs=1e-4)
        norm = torch.nn.utils.get_total_norm([w.grad for w in model.parameters() if w.grad is not None])
        model.zero_grad()
        trainer = accumulating(model, batches, tmp_path)
        told = logged(trainer)
    if trainer.model_accepts_loss_kwargs:
        assert told["loss"] == pytest.approx(over_all, abs=1e-4)
        assert told["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    else:
        assert "qwen" in name
        means = [float(own.mean()) for own in losses]
        assert told["loss"] == pytest.approx(sum(means) / 2, abs=1e-4)
    assert trainer.model_accepts_loss_kwargs == plain_trainer_accepts(case.model, tmp_path)


def accumulating(model: Any, batches: list[dict[str, Tensor]], folder: Path) -> Trainer:
    """A trainer for which the batches, in their order, are the micro-batches of a step."""
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        **SETTINGS,
    )
    return Trainer(model, settings, lambda samples: samples[0], batches)


def plain_trainer_accepts(model: Any, folder: Path) -> bool:
    """Whether the trainer hands the number of labels to the uncut model."""
    return bool(accumulating(model, [], folder).model_accepts_loss_kwargs)
