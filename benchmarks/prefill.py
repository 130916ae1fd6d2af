"""What FlowCut saves until the first token, for every family at real widths, against the uncut model.

One pass is ``model(**inputs)``: vision tower, projector, prefill. Every round times the uncut model and the cut one,
in an order that rotates; a warm-up round comes before. "time" is the median over the rounds of each round's ratio of
seconds, which a drifting machine disturbs least; "FLOPs" the ratio of counted FLOPs (``flowcut.models.costs``);
"arrives" the share of the promised gain that shows on the clock, (1 - time) / (1 - FLOPs).

Weights are random, but query and key weights of the towers (and the query biases of towers without CLS) are drawn
with a larger spread (``--attention-std``), so that attention is concentrated as in a trained tower and the schedule
cuts early. The sizes, and the number of decoder
layers, are in ``real_sizes.py``. Both sides run the same attention implementation.

    python benchmarks/prefill.py --rounds 5 --threads 1 --output runs/prefill.json
    python benchmarks/prefill.py --device cuda --dtype bfloat16 --decoder-layers 28
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from real_sizes import SUBJECTS, Subject, build, prompt
from rich.console import Console
from rich.table import Table

from flowcut import FlowCut, attach
from flowcut.measure.timing import PhaseTimer, Seconds
from flowcut.models import find_parts

PHASES = ("tower", "prefill", "total")
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


@dataclass(frozen=True)
class Measurement:
    """One family's figures.

    Attributes:
        uncut, cut: seconds of every round.
        flops: FLOPs of (tower, projector, prefill), cut.
        uncut_flops: the same of the uncut model.
        load: the machine's load average before and after.
    """

    family: str
    hub_id: str
    picture: str
    decoder_layers: int
    visual_tokens: int
    visual_tokens_mean: float
    uncut: list[Seconds]
    cut: list[Seconds]
    flops: tuple[int, int, int]
    uncut_flops: tuple[int, int, int]
    load: tuple[float, float]

    def time_ratio(self, phase: str) -> float:
        """Median over the rounds of cut by uncut seconds."""
        pairs = zip(self.cut, self.uncut, strict=True)
        return median(getattr(cut, phase) / getattr(uncut, phase) for cut, uncut in pairs)

    def flop_ratio(self, phase: str) -> float:
        """Cut by uncut FLOPs."""
        ours, theirs = (
            {"tower": flops[0], "prefill": flops[2], "total": sum(flops)} for flops in (self.flops, self.uncut_flops)
        )
        return ours[phase] / theirs[phase]

    def arrives(self, phase: str) -> float:
        """Share of the promised gain."""
        return (1 - self.time_ratio(phase)) / (1 - self.flop_ratio(phase))

    def as_json(self) -> dict[str, Any]:
        """Everything, with the ratios."""
        ratios = {
            phase: {"time": self.time_ratio(phase), "flops": self.flop_ratio(phase), "arrives": self.arrives(phase)}
            for phase in PHASES
        }
        return {**asdict(self), "ratios": ratios}


def timed(model: Any, parts: Any, inputs: dict[str, Any], clock: Callable[[], float]) -> Seconds:
    """One pass."""
    with PhaseTimer(parts, inputs["input_ids"].device, clock) as timer:
        model(**inputs, use_cache=True, logits_to_keep=1)
    return timer.seconds


@torch.no_grad()
def measure(
    name: str,
    subject: Subject,
    model: Any,
    method: FlowCut,
    inputs: dict[str, Any],
    rounds: int,
    clock: Callable[[], float],
) -> Measurement:
    """Time one family."""
    _, parts = find_parts(model)
    load = os.getloadavg()[0]
    seconds: dict[str, list[Seconds]] = {"uncut": [], "cut": []}
    sequence: Any = None
    for number in range(rounds + 1):
        for side in ("uncut", "cut") if number % 2 else ("cut", "uncut"):
            if side == "uncut":
                taken = timed(model, parts, inputs, clock)
            else:
                with attach(model, method) as handle:
                    taken = timed(model, parts, inputs, clock)
                    sequence = handle.trace.sequence
            if number:
                seconds[side].append(taken)
    cut, uncut = sequence.flops[0], sequence.uncut_flops[0]
    return Measurement(
        family=name,
        hub_id=subject.hub_id,
        picture=subject.picture,
        decoder_layers=len(parts.decoder_layers),
        visual_tokens=subject.visual_tokens,
        visual_tokens_mean=sequence.visual_tokens_mean[0],
        **seconds,
        flops=(cut.tower, cut.projector, cut.prefill),
        uncut_flops=(uncut.tower, uncut.projector, uncut.prefill),
        load=(load, os.getloadavg()[0]),
    )


def main(
    families: Annotated[str, typer.Option(help="families, separated by commas")] = ",".join(SUBJECTS),
    retain_ratio: Annotated[float, typer.Option(help="share of the visual tokens that stays")] = 1 / 9,
    decoder_layers: Annotated[int | None, typer.Option(help="decoder layers instead of each family's own")] = None,
    rounds: Annotated[int, typer.Option(help="timed rounds after one warm-up")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    words: Annotated[int, typer.Option(help="text tokens of the prompt")] = 40,
    attention: Annotated[str, typer.Option(help="attention implementation of both sides")] = "sdpa",
    attention_std: Annotated[float, typer.Option(help="spread of the towers' query and key weights")] = 0.06,
    clock: Annotated[str, typer.Option(help="wall, or process: CPU seconds of this program, on a busy CPU")] = "wall",
    device: Annotated[str, typer.Option()] = "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    output: Annotated[Path | None, typer.Option(help="write the figures as JSON, after every family")] = None,
) -> None:
    """Measure and print one table."""
    torch.set_num_threads(threads)
    number_type = getattr(torch, dtype)
    if clock not in CLOCKS or (clock == "process" and device != "cpu"):
        raise typer.BadParameter(f"{clock!r} is no clock for {device}; wall always is, process on the cpu.")
    done: list[Measurement] = []
    console = Console(stderr=True, width=160)
    for name in families.split(","):
        if name not in SUBJECTS:
            raise typer.BadParameter(f"{name!r} is not a family; there are {', '.join(SUBJECTS)}.")
        subject = SUBJECTS[name]
        with console.status(name):
            layers = subject.layers if decoder_layers is None else decoder_layers
            model = build(subject, layers, attention, attention_std, device, number_type)
            inputs = {
                key: value.to(device=device, dtype=number_type if value.is_floating_point() else None)
                for key, value in prompt(subject, words).items()
            }
            done.append(
                measure(name, subject, model, FlowCut(retain_ratio=retain_ratio), inputs, rounds, CLOCKS[clock])
            )
        del model
        gc.collect()
        console.print(row(done[-1]), highlight=False)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps([measurement.as_json() for measurement in done], indent=1) + "\n")
    report(
        done,
        f"{dtype}, {device}, {attention}, {threads} thread(s), {clock} clock, {rounds} rounds, "
        f"{retain_ratio:.3f} retained",
    )


def row(done: Measurement) -> str:
    """One family in a line, while others still run."""
    ratios = ", ".join(f"{phase} {done.time_ratio(phase):.3f} ({done.flop_ratio(phase):.3f})" for phase in PHASES)
    return f"{done.family}: time (FLOPs) {ratios}; arrives {done.arrives('total'):.0%}; load {done.load}"


def report(done: list[Measurement], title: str) -> None:
    """Print the table."""
    table = Table(title=title)
    for column in ("family", "input", "decoder layers", "visual tokens"):
        table.add_column(column, overflow="fold")
    for phase in PHASES:
        table.add_column(f"{phase}: seconds uncut", justify="right")
        table.add_column("time", justify="right")
        table.add_column("FLOPs", justify="right")
    table.add_column("arrives", justify="right")
    for each in done:
        figures = []
        for phase in PHASES:
            figures.append(f"{median(getattr(seconds, phase) for seconds in each.uncut):.3f}")
            figures += [f"{each.time_ratio(phase):.3f}", f"{each.flop_ratio(phase):.3f}"]
        table.add_row(
            each.family,
            each.picture,
            str(each.decoder_layers),
            f"{each.visual_tokens} -> {each.visual_tokens_mean:.0f}",
            *figures,
            f"{each.arrives('total'):.0%}",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
