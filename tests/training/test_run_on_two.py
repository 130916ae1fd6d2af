"""``flowcut train`` on two processes: the weights of one with the same samples an update, and going on after a kill.

Each process has one sample in a pass, every third without a picture. FSDP2 trains whole weights, the others adapters;
DeepSpeed's are trained with where it is installed. Both processes run everything one after the other, once for all.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import two_processes
from toy_runs import config_of, make_place, weights
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from typer.testing import CliRunner

from flowcut.cli import app
from flowcut.training.processes import agree, check_sharing
from flowcut.training.run import TrainResult, train
from flowcut.training.trainer import CutTrainer

pytest.importorskip("peft", reason="PEFT is one of the development extras")

STEPS = 4
"""Updates of four samples each: more than one epoch of twelve."""

RUNS: dict[str, dict[str, Any]] = {"ddp": {"tower": "lora"}, "fsdp2": {"language": "full", "tower": "full"}}
"""What is trained with which wrapper, beside the projector. Dropout would not be the same on one process."""

if find_spec("deepspeed"):
    RUNS |= {"zero2": {"tower": "lora"}, "zero3": {"tower": "lora"}}


def run_of(place: Path, name: str, wrapper: str, batch: int) -> Any:
    """A run; FSDP's also computes activations again."""
    return config_of(
        place,
        f"{name}-{wrapper}",
        data={"held_out": str(place / "rows.json")},
        tune={"dropout": 0.0, "projector": True, **RUNS[wrapper]},
        optimize={"batch": batch, "steps": STEPS, "rate": 1e-3, "checkpointing": wrapper == "fsdp2"},
    )


def kill(config: Any) -> None:
    """A run that ends in its third update, behind the checkpoint of the second."""
    step, calls = CutTrainer.training_step, []

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CutTrainer, "training_step", counted)
        train(config)


def on_two(place: Path, runs: dict[str, Any], rank: int) -> dict[str, Any]:
    """What one of the two processes does."""
    told: list[str] = []
    found: dict[str, Any] = {"told": told, "unbroken": train(runs["unbroken-ddp"], tell=told.append)}
    with pytest.raises(ValueError, match=r"different checkpoints in the output folder \(checkpoint-2, None\)"):
        agree(place / "checkpoint-2" if rank == 0 else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError, match="FSDP on accelerators alone"):
            train(runs["refused-fsdp2"])

    two_processes.know_fsdp()
    for wrapper in RUNS:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in two_processes.environment_of(wrapper).items():
                patch.setenv(name, value)
            patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
            kill(runs[f"two-{wrapper}"])
            unset_hf_deepspeed_config()  # or the next model is shared out while it is read, as in no process of its own
            found[wrapper] = train(runs[f"two-{wrapper}"])
            unset_hf_deepspeed_config()
            again = train(runs[f"two-{wrapper}"])
            unset_hf_deepspeed_config()
            assert again.resumed_from == STEPS and again.loss is None

    # Last, because the command leaves the group of processes.
    asked = CliRunner().invoke(app, ["train", str(place / "asked.yaml"), "--json"])
    return {**found, "asked": (asked.exit_code, asked.stdout, asked.stderr)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def both(place: Path) -> list[dict[str, Any]]:
    """What each of the two processes came to."""
    report = {"tasks": "photo-v2", "per_task": 1}
    config_of(place, "asked", tune={"dropout": 0.0}, optimize={"steps": 1, "batch": 1}, report=report)
    names = ("unbroken-ddp", "refused-fsdp2", *(f"two-{wrapper}" for wrapper in RUNS))
    runs = {name: run_of(place, *name.split("-"), 1) for name in names}
    return two_processes.run_both(lambda rank: on_two(place, runs, rank), place, seconds=400)


def log_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "log.csv").open()))


@two_processes.can_fork
@pytest.mark.parametrize("wrapper", RUNS)
def test_the_weights_are_those_of_one_process(wrapper: str, place: Path, both: list[dict[str, Any]]) -> None:
    alone = train(run_of(place, "one", wrapper, 2), cpu=True)
    one, two = place / f"one-{wrapper}", place / f"two-{wrapper}"
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys() and any("vision" in name for name in found)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=3e-5, msg=lambda told, name=name: name + told)
    results: list[TrainResult] = [found[wrapper] for found in both]
    assert [result.steps for result in results] == [alone.steps] * 2 == [STEPS] * 2
    assert results[0].trained == alone.trained and results[0].samples == alone.samples
    for row, other in zip(log_of(two), log_of(one), strict=True):
        for column in ("loss", "grad_norm", "learning_rate", "visual_tokens_saved"):
            assert float(row[column] or 0) == pytest.approx(float(other[column] or 0), rel=1e-3), column


@two_processes.can_fork
def test_a_killed_run_goes_on_to_the_weights_of_an_unbroken_one(place: Path, both: list[dict[str, Any]]) -> None:
    assert all(one[wrapper].resumed_from == 2 for one in both for wrapper in RUNS)
    expected = weights(place / "unbroken-ddp")
    for name, weight in weights(place / "two-ddp").items():
        assert torch.equal(weight, expected[name]), name


@two_processes.can_fork
def test_one_process_speaks_and_both_have_asked(both: list[dict[str, Any]]) -> None:
    assert both[0]["told"] and not both[1]["told"]
    (code, said, _), (other_code, other_said, _) = both[0]["asked"], both[1]["asked"]
    assert code == other_code == 0 and '"eval_accuracy"' in said and other_said == ""
    results = [
        replace(one["unbroken"], evaluation={"eval_loss": one["unbroken"].evaluation["eval_loss"]}) for one in both
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("plugins", "tasks", "message"),
    [
        ({"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, False, "in its second version"),
        (
            {"fsdp_plugin": SimpleNamespace(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")},
            False,
            "saves no weights",
        ),
        (
            {"fsdp_plugin": SimpleNamespace(fsdp_version=2, state_dict_type="FULL_STATE_DICT")},
            True,
            "leave none of them all weights",
        ),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, True, "leave none of them all weights"),
    ],
)
def test_what_shared_out_weights_do_not_do_is_told(plugins: dict[str, Any], tasks: bool, message: str) -> None:
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(**plugins))
    with pytest.raises(ValueError, match=message):
        check_sharing(accelerator, tasks=tasks)
    check_sharing(
        SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2))),  # type: ignore[arg-type]
        tasks=True,
    )
