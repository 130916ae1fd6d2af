"""Training on two processes: gradients are those of one process with the same samples, and nothing hangs.

Both processes run every case one after the other, once for the whole file (``two_processes.py``). The schedule cuts
every image at its own layers, so the two never do the same; a rank whose samples have no image does not run its tower.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import families
import pytest
import tiny
import tiny_qwen
import torch
import two_processes
import zoo
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from flowcut import FlowCut, Handle, attach
from flowcut.models import find_parts

pytestmark = two_processes.can_fork

METHODS = {
    "llava, clip": FlowCut(target_num=9),
    "llava_next": FlowCut(target_num=10),
    "qwen2_5_vl": FlowCut(target_num=6),
}
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """One step on two processes.

    Attributes:
        samples: which ones each of the two has.
        wrapped: by what, and whether before or after the method is attached.
    """

    family: str
    samples: str
    wrapped: str
    checkpointing: bool

    def __str__(self) -> str:
        return f"{self.family}, {self.samples}, {self.wrapped}{', checkpointing' * self.checkpointing}"


RUNS = [
    *(Run(family, samples, "ddp", True) for family in METHODS for samples in ("ragged", "one without image")),
    Run("llava, clip", "one without image", "ddp, then attached", False),
    *(Run(family, "ragged", "fsdp2", True) for family in ("llava, clip", "qwen2_5_vl")),
    Run("llava, clip", "one without image, but a picture for nothing", "fsdp2, then attached", True),
]


@cache
def samples_of(family: str) -> list[Any]:
    """Four: one image, two images (LLaVA) or others of their own sizes, another image, none."""
    if family == "qwen2_5_vl":
        first, second, text, _ = tiny_qwen.four(zoo.case(family).model)
        return [first, second, tiny_qwen.sample([(1, 12, 10)], [], 5, seed=4), text]
    case = zoo.case(family)
    if family == "llava_next":
        other = zoo.with_tiles(case.model, [(80, 160)], 7)
        text = {"input_ids": families.prompt([], seed=3)}
    else:
        other = {"input_ids": tiny.prompt(1, words=11, seed=5), "pixel_values": tiny.pictures(1, 5)}
        text = {"input_ids": tiny.prompt(0, words=9, seed=6)}
    return [*case.samples, other, text]


def shares(run: Run) -> tuple[list[Any], list[Any]]:
    """The samples of both processes."""
    first, second, third, text = samples_of(run.family)
    return ([first, second], [third]) if run.samples == "ragged" else ([first], [text])


def batch_of(family: str, samples: list[Any], for_nothing: list[Any] | tuple[()] = ()) -> Batch:
    """A batch whose labels are all tokens of text but the first; behind it the samples ``for_nothing``, without."""
    inputs = zoo.case(family).together([*samples, *for_nothing])
    ids = inputs["input_ids"]
    placeholders = find_parts(zoo.case(family).model)[1].placeholders.values()
    real = inputs["attention_mask"].bool()
    text = real & ~torch.isin(ids, torch.tensor(list(placeholders)))
    text &= torch.nn.functional.pad(real[:, :-1], (1, 0))  # nothing predicts a first token
    text[len(samples) :] = False
    return {**inputs, "labels": ids.masked_fill(~text, -100)}


def answers(batch: Batch) -> int:
    """How many tokens a batch has labels for."""
    return int((batch["labels"] != -100).sum())


def gradients(model: Any) -> dict[str, Tensor]:
    """Of every weight; of none that no image reached."""
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}


def accelerator(model: Any) -> Any:
    """As much of accelerate's as its preparation of a model asks for: on CPU it takes itself for one without FSDP."""
    os.environ.update(two_processes.environment_of("fsdp2"))
    if "Qwen" in type(model).__name__:
        os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "Qwen2_5_VLDecoderLayer,Qwen2_5_VLVisionBlock"
    return SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin()),
        torch_device_mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=["fsdp"]),
        mixed_precision="no",
        is_main_process=True,
    )


def attached(run: Run, rank: int | None) -> tuple[Any, Any, Handle]:
    """The model, what to call, and the method's handle."""
    model = copy.deepcopy(zoo.case(run.family).model).train()
    if run.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    attach_first = rank is None or not run.wrapped.endswith("attached")
    handle = attach(model, METHODS[run.family]) if attach_first else None
    called: Any = model
    if rank is not None and run.wrapped.startswith("ddp"):
        called = DistributedDataParallel(model, find_unused_parameters=True)
    elif rank is not None:
        called = fsdp2_prepare_model(accelerator(model), model)
    return model, called, attach(called, METHODS[run.family]) if handle is None else handle


def step(run: Run, rank: int) -> dict[str, Any]:
    """Two forward and backward passes of one process: the second finds out what a first one left behind."""
    model, called, handle = attached(run, rank)
    own = shares(run)
    count = sum(answers(batch_of(run.family, samples)) for samples in own)
    for_nothing = samples_of(run.family)[2:3] if "for nothing" in run.samples and rank == 1 else ()
    batch = batch_of(run.family, own[rank], for_nothing)
    for _ in range(2):
        model.zero_grad()
        # Both kinds of wrapper take the mean over the processes.
        (2 * called(**batch, num_items_in_batch=count, use_cache=False).loss).backward()
    found = gradients(model)  # both must ask: each has a part of them
    return {
        "shared_out": sorted(name for name, module in model.named_modules() if isinstance(module, FSDPModule)),
        "gradients": found if rank == 0 else {},
        "layers": [image.tokens_after_layer for image in handle.trace.images],
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every case gave, in each of the two processes."""
    folder = tmp_path_factory.mktemp("two")
    for run in RUNS:
        samples_of(run.family)

    def work(rank: int) -> dict[str, Any]:
        return {str(run): step(run, rank) for run in RUNS}

    return two_processes.run_both(work, folder)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_gradients_are_those_of_one_process(run: Run, both: list[dict[str, Any]]) -> None:
    found = both[0][str(run)]["gradients"]
    model, _, handle = attached(run, None)
    own = shares(run)
    batch = batch_of(run.family, own[0] + own[1])
    model(**batch, num_items_in_batch=answers(batch), use_cache=False).loss.backward()
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)
    assert any("vision" in name or "visual" in name for name in expected)
    if run.wrapped.startswith("fsdp2"):
        parts = find_parts(model)[1]
        layers = {
            name for name, module in model.named_modules() if module in {*parts.decoder_layers, *parts.tower.layers}
        }
        assert layers < set(both[0][str(run)]["shared_out"])
    layers = [one[str(run)]["layers"] for one in both]
    assert (layers[1] == []) == (run.samples == "one without image")
    assert layers[0] != layers[1], "the two must not have done the same"
    if run.samples == "ragged":
        assert sorted(layers[0] + layers[1]) == sorted(image.tokens_after_layer for image in handle.trace.images)
