"""What every method costs when it cuts next to nothing: one token of 576, so that all of its work is done for no gain.

LLaVA-1.5's widths (CLIP ViT-L/14-336, a decoder of width 4096) with few layers and random weights; one picture and 32
tokens of text; a prefill from pixels to logits. A method's work does not grow with the number of layers, except for
those that look at every layer of the tower (FlowCut, ToMe), so the table also gives the extra seconds next to a prefill
of the real depth: 24 layers of the tower (uncut, as the model runs it) and 32 of the decoder, from the measured seconds
per layer.

Rounds are interleaved; a row is the median over rounds of the ratio to the same round's uncut prefill. On a CPU the
seconds are those of the process, so that other programs on the machine count little. A method that does not run the
tower's last layer saves its time: "uncut, last layer not run" is the fair opponent in the column "overhead".

    python benchmarks/overhead.py --rounds 3
"""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from flowcut import METHODS, Method, attach

PATCHES = 576
DEPTHS = (24, 32)
SETTINGS: dict[str, dict[str, Any]] = {"pyramiddrop": {"layers": (1, 2, 3)}, "sparsevlm": {"layers": (0, 1, 2)}}
"""Of methods whose defaults name decoder layers that few layers do not have."""


def build_model(tower_layers: int, decoder_layers: int, width: int, device: str, dtype: torch.dtype) -> Any:
    """LLaVA-1.5 with random weights."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=tower_layers,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=11008 * width // 4096,
        num_hidden_layers=decoder_layers,
        num_attention_heads=width // 128,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=999)
    return LlavaForConditionalGeneration._from_config(config).eval().to(device=device, dtype=dtype)


@torch.no_grad()
def timed(call: Any, device: str) -> float:
    """Seconds of one call: of the process on a CPU, of the clock elsewhere."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    call()
    return time.process_time() - start


def prefill(model: Any, inputs: dict[str, Any], method: Method | None, device: str) -> float:
    """Seconds of one prefill; ``None`` is the model with nothing attached."""
    if method is None:
        return timed(lambda: model(**inputs, logits_to_keep=1), device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = attach(model, method)
    with handle:
        return timed(lambda: model(**inputs, logits_to_keep=1), device)


def main(
    methods: Annotated[str, typer.Option(help="names separated by commas; by default all")] = "",
    rounds: Annotated[int, typer.Option(help="timed rounds after one warm-up")] = 3,
    tower_layers: Annotated[int, typer.Option()] = 8,
    decoder_layers: Annotated[int, typer.Option()] = 4,
    width: Annotated[int, typer.Option(help="of the decoder")] = 4096,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    device: Annotated[str, typer.Option()] = "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
) -> None:
    """Measure and print one table."""
    torch.set_num_threads(threads)
    model = build_model(tower_layers, decoder_layers, width, device, getattr(torch, dtype))
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, *[999] * PATCHES, *range(2, 33)]])
    inputs = {"input_ids": ids.to(device), "pixel_values": pixels.to(device=device, dtype=getattr(torch, dtype))}
    rows: dict[str, Method | None] = {"uncut": None, "nothing to cut": METHODS["flowcut"](target_num=PATCHES)}
    for name in methods.split(",") if methods else METHODS:
        rows[name] = METHODS[name](target_num=PATCHES - 1, **SETTINGS.get(name, {}))
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    tower: list[float] = []
    names = list(rows)
    for number in track(range(rounds + 1), description="rounds", console=Console(stderr=True)):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = prefill(model, inputs, rows[name], device)
            if number:
                seconds[name].append(elapsed)
        if number:
            tower.append(timed(lambda: model.model.vision_tower(inputs["pixel_values"]), device))
    vision = statistics.median(tower)
    decoder = statistics.median(seconds["uncut"]) - vision
    whole = vision / tower_layers * DEPTHS[0] + decoder / decoder_layers * DEPTHS[1]
    table = Table(
        title=f"{tower_layers} + {decoder_layers} layers, width {width}, {dtype}, {device}, {rounds} rounds; "
        f"uncut {vision + decoder:.2f} s, {whole:.1f} s at 24 + 32 layers"
    )
    for column in ("method", "of uncut", "overhead", "extra seconds", "of real depth"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, times in seconds.items():
        of_uncut = statistics.median(ours / uncut for ours, uncut in zip(times, seconds["uncut"], strict=True))
        pairs = list(zip(times, seconds["nothing to cut"], strict=True))
        extra = statistics.median(ours - base for ours, base in pairs)
        overhead = statistics.median(ours / base for ours, base in pairs) - 1
        table.add_row(name, f"{of_uncut:.3f}", f"{overhead:+.1%}", f"{extra:+.3f}", f"{extra / whole:+.2%}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
