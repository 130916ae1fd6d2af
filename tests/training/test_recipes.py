"""The accelerate configs in ``recipes/train``: read as ``accelerate launch`` reads them, and trained with.

Two processes on CPU take two steps of transformers' Trainer, in micro-batches and with gradient checkpointing, and end
with the weights that one process has. DeepSpeed's are trained with where it is installed.
"""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import two_processes
import zoo
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from flowcut import FlowCut, attach

TYPES = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}
each_recipe = pytest.mark.parametrize("name", TYPES)
TRAINED = ["ddp", "fsdp2", *(["zero2", "zero3"] if find_spec("deepspeed") else [])]


@each_recipe
def test_accelerate_reads_the_recipe(name: str) -> None:
    config = load_config_from_file(str(two_processes.RECIPES / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == TYPES[name] and config.num_processes == 8
    environment = two_processes.environment_of(name)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    if name == "fsdp2":
        assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
        assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    if name.startswith("zero"):
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == name[-1]


class Rows(Dataset[dict[str, Any]]):
    """Eight samples, every fourth without image."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> dict[str, Any]:
        images = (1, 2, 1, 0)[number % 4]
        tokens = {"input_ids": tiny.prompt(images, 4 + number, number)}
        return {**tokens, "pixel_values": tiny.pictures(images, number)} if images else tokens


def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch with labels on the text; one without a picture gets a further row with one, which has no labels.

    Where weights are shared out, every process must run its tower in every step.
    """
    count = len(samples)
    if not any("pixel_values" in sample for sample in samples):
        samples = [*samples, Rows()[0]]
    inputs = zoo.case("llava, clip").together(samples, "right")
    ids = inputs["input_ids"]
    no_label = (ids == tiny.IMAGE_TOKEN) | (ids == tiny.PAD_TOKEN)
    no_label[:, 0] = True
    no_label[count:] = True
    return {**inputs, "labels": ids.masked_fill(no_label, -100)}


def trained(folder: Path, processes: int) -> dict[str, Tensor]:
    """The weights after two steps of four samples."""
    model = copy.deepcopy(zoo.case("llava, clip").model)
    attach(model, FlowCut(target_num=9))
    settings = TrainingArguments(
        output_dir=str(folder),
        use_cpu=not os.environ.get("ACCELERATE_USE_DEEPSPEED"),
        ddp_backend="gloo" if processes > 1 else None,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        max_steps=2,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.1,
        per_device_train_batch_size=2 // processes,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        ddp_find_unused_parameters=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
    )
    assert settings.world_size == processes
    trainer = Trainer(model, settings, collate, Rows())
    trainer.train()
    if processes > 1:
        used = {
            "ACCELERATE_USE_DEEPSPEED": "DeepSpeedEngine",
            "ACCELERATE_USE_FSDP": "FSDPLlavaForConditionalGeneration",
        }
        expected = [form for told, form in used.items() if told in os.environ] or ["DistributedDataParallel"]
        assert [type(trainer.model_wrapped).__name__] == expected
    return {name: whole(weight) for name, weight in model.named_parameters()}


def whole(weight: Any) -> Tensor:
    """A weight of which every process may have a part."""
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return weight.detach().clone()


@two_processes.can_fork
@pytest.mark.skipif(torch.cuda.is_available(), reason="a test on CPU")
@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_take_the_steps_of_one(name: str, tmp_path: Path, alone: dict[str, Tensor]) -> None:
    environment = two_processes.environment_of(name)
    before = copy.deepcopy(zoo.case("llava, clip").model)

    def work(rank: int) -> dict[str, Any]:
        os.environ.update(environment, ACCELERATE_MIXED_PRECISION="no")
        two_processes.know_fsdp()
        return trained(tmp_path, 2)

    found, other = two_processes.run_both(work, tmp_path)
    moved = 0.0
    for name, weight in before.named_parameters():
        assert torch.equal(found[name], other[name])
        torch.testing.assert_close(found[name], alone[name], rtol=1e-5, atol=1e-5, msg=name)
        moved = max(moved, float((alone[name] - weight).detach().abs().max()))
    assert moved > 1e-3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of one process."""
    return trained(tmp_path_factory.mktemp("alone"), 1)
