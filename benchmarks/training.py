"""What FlowCut saves in a training step at LLaVA-1.5's proportions, against the uncut model.

One step is ``model(**inputs, labels=labels).loss`` and ``.backward()``, without an optimizer. Every round times the
uncut model and the cut one, in an order that alternates; a warm-up round comes before. "faster" is the median over the
rounds of uncut by cut seconds. "FLOPs" is the same ratio of the FLOPs that torch counts in the matrix products of one
step, forward and backward, with eager attention. "arrives" is the share of the promised gain that shows on the clock,
(1 - seconds) / (1 - FLOPs), each cut by uncut. "peak" is the most memory that a step takes above what was in use before
it: what torch allocated on a GPU, the growth of the resident set on a CPU (Linux).

Widths, heads and MLPs of tower and language model are LLaVA-1.5-7B's divided by ``--scale``, so that their proportions
stay; the tower has its 24 layers, the language model ``--decoder-layers`` of its 32. Weights are random, but the
tower's query and key weights are drawn with a larger spread, so that attention is concentrated as in a trained tower.
"full" trains the language model and the projector, "LoRA" adapters in the language model (rank 128 by scale) and the
projector; the tower is frozen, or all its weights are trained with the rest.

    python benchmarks/training.py --rounds 3 --output runs/training.json
    python benchmarks/training.py --scale 1 --decoder-layers 32 --device cuda --dtype bfloat16 --batch-size 4
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from flowcut import FlowCut, attach
from flowcut.measure.peak import PeakMemory
from flowcut.measure.real_sizes import CLIP, LLAMA, SUBJECTS, build, prompt
from flowcut.models import find_parts

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
SETTINGS = {
    f"{weights}, tower {tower}": (weights, tower) for weights in ("full", "LoRA") for tower in ("frozen", "trained")
}


@dataclass(frozen=True)
class Measurement:
    """One way to train.

    Attributes:
        uncut, cut: seconds of every round.
        flops, uncut_flops: of one step.
        peak, uncut_peak: bytes above what was in use, ``None`` where this system does not tell.
    """

    setting: str
    visual_tokens: int
    target_num: int
    text_tokens: int
    batch_size: int
    uncut: list[float]
    cut: list[float]
    flops: int
    uncut_flops: int
    peak: int | None
    uncut_peak: int | None

    @property
    def time_ratio(self) -> float:
        """Cut by uncut seconds, the median over the rounds."""
        return median(cut / uncut for cut, uncut in zip(self.cut, self.uncut, strict=True))

    @property
    def arrives(self) -> float:
        """Share of the promised gain."""
        return (1 - self.time_ratio) / (1 - self.flops / self.uncut_flops)


def new_model(setting: str, scale: int, layers: int, device: str, dtype: torch.dtype) -> Any:
    """LLaVA-1.5 with the widths divided by ``scale``; what ``setting`` trains requires gradients."""
    divided = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    tower = {name: value // scale if name in divided else value for name, value in CLIP.items()}
    text = {name: value // scale if name in divided else value for name, value in LLAMA.items()}
    original = SUBJECTS["llava"]
    subject = replace(original, config={**original.config, "vision_config": tower}, text=text)
    model = build(subject, layers, "sdpa", 0.06 * scale**0.5, device, dtype)
    weights, trained_tower = SETTINGS[setting]
    if weights == "LoRA":
        inside = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        model = get_peft_model(model, LoraConfig(r=128 // scale, target_modules=inside))
    parts = find_parts(model)[1]
    parts.projector.requires_grad_()
    parts.tower.module.requires_grad_(trained_tower == "trained")
    return model.train()


def batch_of(batch_size: int, words: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """One picture and ``words`` tokens of text each, the last half of them the answer."""
    inputs = prompt(SUBJECTS["llava"], words)
    inputs = {name: torch.cat([value] * batch_size) for name, value in inputs.items()}
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -(words // 2) :] = inputs["input_ids"][:, -(words // 2) :]
    return {
        name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
        for name, value in {**inputs, "labels": labels}.items()
    }


class Stepper:
    """Takes steps with one model, cut or not."""

    def __init__(self, model: Any, method: FlowCut, batch: dict[str, Any], clock: Callable[[], float]) -> None:
        self.model, self.method, self.batch, self.clock = model, method, batch, clock
        self.cuda = batch["input_ids"].is_cuda

    def step(self, cut: bool) -> float:
        """Seconds of a forward and a backward pass."""
        with ExitStack() as stack:
            if cut:
                handle = stack.enter_context(attach(self.model, self.method))
            self.model.zero_grad(set_to_none=True)
            self._wait()
            start = self.clock()
            self.model(**self.batch, use_cache=False).loss.backward()
            self._wait()
            seconds = self.clock() - start
            if cut:
                assert all(len(image.kept) == self.method.target_num for image in handle.trace.images)
        return seconds

    def flops(self, cut: bool) -> int:
        """FLOPs of the matrix products of a step; torch does not know every kernel of fused attention."""
        whole = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        whole.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            self.step(cut)
        whole.set_attn_implementation("sdpa")
        return int(counter.get_total_flops())

    def peak(self, cut: bool) -> int | None:
        """Bytes that a step takes at most above what was in use."""
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what earlier steps left to the allocator
        with PeakMemory(self.batch["input_ids"].device) as memory:
            self.step(cut)
        return memory.bytes

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def measure(setting: str, stepper: Stepper, rounds: int) -> Measurement:
    """Time one way to train, sides in turn."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for cut in (False, True) if number % 2 else (True, False):
            taken = stepper.step(cut)
            if number:
                seconds[cut].append(taken)
    ids = stepper.batch["input_ids"]
    visual = SUBJECTS["llava"].visual_tokens
    assert stepper.method.target_num is not None
    return Measurement(
        setting=setting,
        visual_tokens=visual,
        target_num=stepper.method.target_num,
        text_tokens=ids.shape[1] - visual,
        batch_size=len(ids),
        uncut=seconds[False],
        cut=seconds[True],
        flops=stepper.flops(True),
        uncut_flops=stepper.flops(False),
        peak=stepper.peak(True),
        uncut_peak=stepper.peak(False),
    )


def main(
    settings: Annotated[str, typer.Option(help="ways to train, separated by semicolons")] = ";".join(SETTINGS),
    target_num: Annotated[int, typer.Option(help="visual tokens that stay of 576")] = 192,
    scale: Annotated[int, typer.Option(help="divides all widths of LLaVA-1.5-7B")] = 4,
    decoder_layers: Annotated[int, typer.Option(help="decoder layers, of 32")] = 16,
    batch_size: Annotated[int, typer.Option()] = 1,
    words: Annotated[int, typer.Option(help="text tokens of each sample")] = 60,
    rounds: Annotated[int, typer.Option(help="timed rounds after one warm-up")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    clock: Annotated[str, typer.Option(help="wall, or process: CPU seconds of this program, on a busy CPU")] = "wall",
    device: Annotated[str, typer.Option()] = "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    output: Annotated[Path | None, typer.Option(help="write the figures as JSON, after every setting")] = None,
) -> None:
    """Measure and print one table."""
    torch.set_num_threads(threads)
    if clock not in CLOCKS or (clock == "process" and device != "cpu"):
        raise typer.BadParameter(f"{clock!r} is no clock for {device}; wall always is, process on the cpu.")
    done: list[Measurement] = []
    console = Console(stderr=True, width=160)
    for setting in settings.split(";"):
        if setting not in SETTINGS:
            raise typer.BadParameter(f"{setting!r} is no way to train; there are {'; '.join(SETTINGS)}.")
        with console.status(setting):
            model = new_model(setting, scale, decoder_layers, device, getattr(torch, dtype))
            batch = batch_of(batch_size, words, device, getattr(torch, dtype))
            stepper = Stepper(model, FlowCut(target_num=target_num), batch, CLOCKS[clock])
            done.append(measure(setting, stepper, rounds))
        del model, stepper
        gc.collect()
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            ratios = [{**asdict(each), "time": each.time_ratio, "arrives": each.arrives} for each in done]
            output.write_text(json.dumps(ratios, indent=1) + "\n")
    report(
        done,
        f"576 -> {target_num} visual tokens, {words} of text, batch {batch_size}, widths / {scale}, {decoder_layers} "
        f"decoder layers, {dtype}, {device}, {threads} thread(s), {clock} clock, {rounds} rounds",
    )


def report(done: list[Measurement], title: str) -> None:
    """Print the table."""
    table = Table(title=title)
    for column in ("trained", "seconds uncut", "cut", "faster", "FLOPs", "arrives", "peak uncut", "peak cut"):
        table.add_column(column, justify="left" if column == "trained" else "right")
    for each in done:
        table.add_row(
            each.setting,
            f"{median(each.uncut):.2f}",
            f"{median(each.cut):.2f}",
            f"{1 / each.time_ratio:.2f}x",
            f"{each.uncut_flops / each.flops:.2f}x",
            f"{each.arrives:.0%}",
            *("-" if peak is None else f"{peak / 2**20:,.0f} MiB" for peak in (each.uncut_peak, each.peak)),
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
