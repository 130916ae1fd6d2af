"""TRL's SFTTrainer and DPOTrainer on an attached model.

They replace the model's forward, call its base and pair the last hidden state with uncut labels. Every loss and metric
is compared with one worked out by hand over the kept sequence (``oracle.py``), at full budget with the uncut model's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_checkpoint
import torch
from PIL import Image
from torch import Tensor
from training_runs import BUDGET, CUTS, SETTINGS, by_hand, log_probs, logged, new_model, smoothed

from flowcut import FlowCut, FlowCutError, Method, attach

trl: Any = pytest.importorskip("trl", reason="TRL is one of the development extras")
datasets: Any = pytest.importorskip("datasets", reason="TRL brings it along")


def picture(seed: int) -> Image.Image:
    """A small picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((tiny_checkpoint.SIZE, tiny_checkpoint.SIZE), Image.Resampling.NEAREST)


def words(count: int, first: int) -> str:
    """Text of ``count`` tokens."""
    return " ".join(f"word{first + number}" for number in range(count))


def tuning_data() -> Any:
    """Prompts and completions; the second has no image and is the longest."""
    return datasets.Dataset.from_dict(
        {
            "images": [[picture(1)], [], [picture(2)]],
            "prompt": [f"USER : <image> {words(4, 3)}", f"USER : {words(61, 9)}", f"USER : <image> {words(9, 20)}"],
            "completion": [f" {words(7, 30)}", f" {words(3, 50)}", f" {words(5, 70)}"],
        }
    )


def tuning(model: Any, folder: Path, **options: Any) -> Any:
    """TRL's supervised fine-tuning with its own collator."""
    options = {"gradient_checkpointing": False, **SETTINGS, **options}
    settings = trl.SFTConfig(output_dir=str(folder), per_device_train_batch_size=3, max_length=None, **options)
    return trl.SFTTrainer(
        model, settings, train_dataset=tuning_data(), processing_class=tiny_checkpoint.tiny_processor()
    )


@pytest.mark.parametrize("stage", CUTS)
def test_supervised_tuning_has_losses_and_metrics_over_the_kept_sequence(stage: str, tmp_path: Path) -> None:
    model, method = new_model(), CUTS[stage](target_num=BUDGET)
    with attach(model, method):
        trainer = tuning(model, tmp_path, gradient_checkpointing=True)
        found = logged(trainer)
        batch = next(iter(trainer.get_train_dataloader()))
    model.gradient_checkpointing_disable()
    lengths = batch["attention_mask"].sum(dim=1)
    assert int(lengths.argmax()) == int((~(batch["input_ids"] == tiny.IMAGE_TOKEN).any(dim=1)).nonzero())
    expected, rows = by_hand(model, method, batch)
    labels = batch["labels"]
    assert found["loss"] == pytest.approx(-float(torch.cat(log_probs(rows, labels)).mean()), abs=1e-4)
    chosen = labels[:, 1:] != -100
    logits, wanted = expected.logits[:, :-1][chosen], labels[:, 1:][chosen]
    accuracy = (logits.argmax(dim=-1) == wanted).float().mean()
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert found["mean_token_accuracy"] == pytest.approx(float(accuracy))
    assert found["entropy"] == pytest.approx(float(entropy), abs=1e-4)


def test_supervised_tuning_smooths_labels_over_the_kept_sequence(tmp_path: Path) -> None:
    model, method = new_model(), FlowCut(target_num=BUDGET)
    with attach(model, method):
        trainer = tuning(model, tmp_path, label_smoothing_factor=0.1)
        found = logged(trainer)
        batch = next(iter(trainer.get_train_dataloader()))
    model.gradient_checkpointing_disable()
    expected, _ = by_hand(model, method, batch)
    wanted = smoothed(expected.logits[:, :-1], batch["labels"][:, 1:], 0.1)
    assert found["loss"] == pytest.approx(float(wanted), abs=1e-4)


def preferences() -> Any:
    """Prompts with two completions of different length each; the second has no image and is the longest."""
    return datasets.Dataset.from_dict(
        {
            "images": [[picture(1)], [], [picture(2)]],
            "prompt": [f"USER : <image> {words(4, 3)}", f"USER : {words(61, 9)}", f"USER : <image> {words(9, 20)}"],
            "chosen": [f" {words(7, 30)}", f" {words(3, 50)}", f" {words(5, 70)}"],
            "rejected": [f" {words(2, 90)}", f" {words(8, 60)}", f" {words(4, 80)}"],
        }
    )


def preferring(model: Any, folder: Path, reference: Any = None, **options: Any) -> Any:
    """TRL's direct preference optimisation with its own collator."""
    peft_config = options.pop("peft_config", None)
    options = {"gradient_checkpointing": False, **SETTINGS, **options}
    settings = trl.DPOConfig(output_dir=str(folder), per_device_train_batch_size=3, max_length=None, **options)
    return trl.DPOTrainer(
        model,
        reference,
        settings,
        train_dataset=preferences(),
        processing_class=tiny_checkpoint.tiny_processor(),
        peft_config=peft_config,
    )


def moved(model: Any) -> Any:
    """A copy with slightly other weights in its language model."""
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.model.language_model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return other


def log_probs_of_pairs(model: Any, method: Method, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen and the rejected completions."""
    _, rows = by_hand(model, method, batch)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    chosen, rejected = torch.stack([scores.sum() for scores in log_probs(rows, labels)]).chunk(2)
    return chosen, rejected


@pytest.mark.parametrize("stage", CUTS)
def test_preferences_have_losses_and_metrics_over_the_kept_sequence(stage: str, tmp_path: Path) -> None:
    model, method = new_model(), CUTS[stage](target_num=BUDGET)
    reference = moved(model)
    with attach(model, method), attach(reference, method):
        trainer = preferring(model, tmp_path, reference)
        found = logged(trainer)
        batch = next(iter(trainer.get_train_dataloader()))
    model.gradient_checkpointing_disable()
    chosen, rejected = log_probs_of_pairs(model, method, batch)
    reference_chosen, reference_rejected = log_probs_of_pairs(reference, method, batch)
    gains = (trainer.beta * (chosen - reference_chosen), trainer.beta * (rejected - reference_rejected))
    margins = gains[0] - gains[1]
    assert found["loss"] == pytest.approx(-float(torch.nn.functional.logsigmoid(margins).mean()), abs=1e-4)
    assert abs(found["loss"] - math.log(2)) > 1e-3
    for name, expected in (
        ("logps/chosen", chosen),
        ("logps/rejected", rejected),
        ("rewards/chosen", gains[0]),
        ("rewards/rejected", gains[1]),
        ("rewards/margins", margins),
        ("rewards/accuracies", (margins > 0).float()),
    ):
        assert found[name] == pytest.approx(float(expected.mean()), abs=1e-3), name


@pytest.mark.parametrize("stage", CUTS)
@pytest.mark.parametrize("kind", ["a copy", "adapters", "loaded by the trainer, then attached"])
def test_preferences_begin_at_ln_2_where_the_reference_is_cut_like_the_policy(
    kind: str, stage: str, tmp_path: Path
) -> None:
    model, method = new_model(), CUTS[stage](target_num=BUDGET)
    options: dict[str, Any] = {}
    if kind == "loaded by the trainer, then attached":
        model.save_pretrained(tmp_path / "weights")
        model = type(model).from_pretrained(tmp_path / "weights")
    attach(model, method)
    if kind == "a copy":
        options["reference"] = copy.deepcopy(model)
    if kind == "adapters":
        peft: Any = pytest.importorskip("peft", reason="PEFT is one of the development extras")
        options["peft_config"] = peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj")
    trainer = preferring(model, tmp_path, **options)
    if kind == "loaded by the trainer, then attached":
        attach(trainer.ref_model, method)
    found = logged(trainer)
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["rewards/margins"] == pytest.approx(0.0, abs=1e-5)


def test_a_reference_that_the_trainer_loads_by_itself_is_cut_or_an_error_says_that_it_is_not(
    tmp_path: Path,
) -> None:
    model = new_model()
    model.save_pretrained(tmp_path / "weights")
    model = type(model).from_pretrained(tmp_path / "weights")
    attach(model, FlowCut(target_num=BUDGET))
    try:
        found = logged(preferring(model, tmp_path))
    except FlowCutError as error:
        assert "reference" in str(error)
        return
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("make", [tuning, preferring], ids=["supervised", "preferences"])
def test_at_full_budget_training_logs_what_it_logs_uncut(make: Callable[..., Any], tmp_path: Path) -> None:
    timing = ("train_", "total_flos", "epoch")
    model, other = new_model(), moved(new_model())
    reference = (other,) if make is preferring else ()
    expected = logged(make(copy.deepcopy(model), tmp_path, *copy.deepcopy(reference)))
    for method in CUTS.values():
        policy, *references = copy.deepcopy((model, *reference))
        for attached in (policy, *references):
            attach(attached, method(retain_ratio=1.0))
        found = logged(make(policy, tmp_path, *references))
        for name, value in expected.items():
            if not name.startswith(timing):
                assert found[name] == pytest.approx(value, rel=1e-6), name
