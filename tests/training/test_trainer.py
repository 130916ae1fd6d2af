"""transformers' Trainer on an attached model.

With label smoothing it indexes logits by the columns of ``input_ids`` itself and never asks for the model's own loss.
Every loss is compared with one worked out by hand over the kept sequence (``oracle.py``), at full budget with the uncut
model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.data import Dataset
from training_runs import BUDGET, CUTS, SETTINGS, by_hand, logged, new_model, smoothed
from transformers import Trainer, TrainingArguments

from flowcut import attach


class Labelled(Dataset[dict[str, Any]]):
    """Three samples as batches of one: two with images and a text, the longest of the three."""

    prompts = (tiny.prompt(1, 8, 1), tiny.prompt(0, 60, 2), tiny.prompt(1, 5, 3))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"tokens": self.prompts[number], "number": number}

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Padded on the right; labels on all text but the first token."""
        inputs = tiny.batch([sample["tokens"] for sample in samples], "right")
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        labels = ids.masked_fill((ids == tiny.IMAGE_TOKEN) | ~mask | (ids == 1), -100)
        pixels = torch.cat([tiny.pictures(1, sample["number"]) for sample in samples if sample["number"] != 1])
        return {**inputs, "labels": labels, "pixel_values": pixels}


def plain_trainer(model: Any, folder: Path, **options: Any) -> Trainer:
    """transformers' own."""
    settings = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=3, remove_unused_columns=False, **SETTINGS, **options
    )
    return Trainer(model, settings, Labelled.collate, Labelled())


@pytest.mark.parametrize("stage", CUTS)
def test_trainer_has_the_loss_over_the_kept_sequence(stage: str, tmp_path: Path) -> None:
    model, method = new_model(), CUTS[stage](target_num=BUDGET)
    with attach(model, method):
        trainer = plain_trainer(model, tmp_path)
        found = logged(trainer)
        batch = next(iter(trainer.get_train_dataloader()))
    _, rows = by_hand(model, method, batch)
    assert found["loss"] == pytest.approx(float(oracle.loss_of(rows, batch["labels"])), abs=1e-4)


@pytest.mark.parametrize("stage", CUTS)
def test_trainer_smooths_labels_over_the_kept_columns(stage: str, tmp_path: Path) -> None:
    model, method = new_model(), CUTS[stage](target_num=BUDGET)
    with attach(model, method):
        trainer = plain_trainer(model, tmp_path, label_smoothing_factor=0.1)
        found = logged(trainer)
        batch = next(iter(trainer.get_train_dataloader()))
    expected, _ = by_hand(model, method, batch)
    assert found["loss"] == pytest.approx(float(smoothed(expected.logits, batch["labels"], 0.1)), abs=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_at_full_budget_trainer_logs_what_it_logs_uncut(smoothing: float, tmp_path: Path) -> None:
    model = new_model()
    expected = logged(plain_trainer(model, tmp_path, label_smoothing_factor=smoothing))
    for method in CUTS.values():
        with attach(model, method(retain_ratio=1.0)):
            found = logged(plain_trainer(model, tmp_path, label_smoothing_factor=smoothing))
        assert found["loss"] == expected["loss"] and found["grad_norm"] == pytest.approx(expected["grad_norm"])
