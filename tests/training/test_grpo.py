"""TRL's GRPOTrainer on an attached model: the log-probabilities and entropies of its completions.

It asks for the last columns of a prompt that is padded on the left and a completion that is padded on the right, a few
samples at a time. Each is compared with what a computation by hand over the kept sequence (``oracle.py``) gives, at
full budget with the uncut model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_checkpoint
import torch
from torch import Tensor
from training_runs import BUDGET, CUTS, SETTINGS, by_hand, new_model

from flowcut import attach

trl: Any = pytest.importorskip("trl", reason="TRL is one of the development extras")
datasets: Any = pytest.importorskip("datasets", reason="TRL brings it along")

COMPLETION = 6
IMAGES = [1, 0, 2]
TEMPERATURE = 0.7


def rewarded(model: Any, folder: Path) -> Any:
    """TRL's trainer; its rewards do not matter here."""
    settings = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        num_generations=2,
        temperature=TEMPERATURE,
        gradient_checkpointing=False,
        **SETTINGS,
    )
    prompts = datasets.Dataset.from_dict({"prompt": ["USER : what is shown ?"] * 2})
    return trl.GRPOTrainer(
        model,
        lambda completions, **others: [0.0] * len(completions),
        settings,
        train_dataset=prompts,
        processing_class=tiny_checkpoint.tiny_processor(),
    )


def completed() -> dict[str, Tensor]:
    """Three prompts with one image, none and two, and completions of different length."""
    prompts = tiny.batch([tiny.prompt(images, 4 + 30 * (not images), images) for images in IMAGES], "left")
    answers = tiny.batch([tiny.prompt(0, words, 20 + words)[2:] for words in (5, 3, 4)], "right")
    assert answers["input_ids"].shape[1] == COMPLETION
    inputs = {name: torch.cat([prompts[name], answers[name]], dim=1) for name in prompts}
    return {**inputs, "pixel_values": tiny.pictures(sum(IMAGES))}


def asked(trainer: Any, batch: dict[str, Tensor], batch_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the completions, as the trainer itself asks for them."""
    log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        batch["input_ids"],
        batch["attention_mask"],
        COMPLETION,
        batch_size=batch_size,
        compute_entropy=True,
        pixel_values=batch["pixel_values"],
        num_images=IMAGES,
    )
    return log_probs, entropies


@pytest.mark.parametrize("stage", CUTS)
@torch.no_grad()
def test_log_probabilities_and_entropies_are_those_over_the_kept_sequence(stage: str, tmp_path: Path) -> None:
    model, method, batch = new_model(), CUTS[stage](target_num=BUDGET), completed()
    with attach(model, method):
        trainer = rewarded(model, tmp_path)
        found = [asked(trainer, batch, batch_size) for batch_size in (None, 2)]
    expected, _ = by_hand(new_model(), method, batch)
    scores = (expected.logits[:, -COMPLETION - 1 : -1] / TEMPERATURE).log_softmax(dim=-1)
    answered = batch["attention_mask"][:, -COMPLETION:].bool()
    wanted = scores.gather(2, batch["input_ids"][:, -COMPLETION:, None])[..., 0]
    entropy = -(scores.exp() * scores).sum(dim=-1)
    for log_probs, entropies in found:
        torch.testing.assert_close(log_probs[answered], wanted[answered], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(entropies[answered], entropy[answered], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_at_full_budget_they_are_the_uncut_models(tmp_path: Path) -> None:
    batch = completed()
    expected = asked(rewarded(new_model(), tmp_path), batch)
    for method in CUTS.values():
        model = new_model()
        with attach(model, method(retain_ratio=1.0)):
            found = asked(rewarded(model, tmp_path), batch)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
