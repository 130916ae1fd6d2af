"""What every method costs when it cuts next to nothing: one token of 576, so that all of its work is done for no gain.

A prefill of one picture and 32 tokens of text, from pixels to logits, at LLaVA-1.5's depth: CLIP ViT-L/14-336 at its
real size and 32 decoder layers, with random weights. The decoder is narrower than 4096 unless told otherwise, so that a
CPU can repeat it: work in the tower and behind it weighs more next to a narrow decoder, and that in the decoder, which
grows with its width, as much.

Rounds are interleaved; a row is the median over rounds of the ratio to the same round's prefill. On a CPU the seconds
are those of the process, so that other programs on the machine count little. Every method leaves out the tower's unread
last layer: "of uncut" is against the model as it comes, "overhead" against FlowCut with nothing to cut, which leaves
out that layer alone.

    python benchmarks/overhead.py --rounds 3
"""

from __future__ import annotations

import statistics
import time
import warnings
from typing import Annotated, Any

import torch
import typer
from real_sizes import CLIP, IMAGE, LLAMA
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import LlavaConfig, LlavaForConditionalGeneration

from flowcut import METHODS, Method, attach

PATCHES = 576
DECODER_LAYERS = 32


def build_model(width: int, device: str, dtype: torch.dtype) -> Any:
    """LLaVA-1.5 with random weights."""
    torch.manual_seed(0)
    heads = width // 128
    text = {**LLAMA, "hidden_size": width, "intermediate_size": 11008 * width // 4096}
    text |= {"num_hidden_layers": DECODER_LAYERS, "num_attention_heads": heads, "num_key_value_heads": heads}
    config = LlavaConfig(vision_config=CLIP, text_config=text, image_token_id=IMAGE)
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
    width: Annotated[int, typer.Option(help="of the decoder; LLaVA-1.5-7B has 4096")] = 1024,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    device: Annotated[str, typer.Option()] = "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
) -> None:
    """Measure and print one table."""
    torch.set_num_threads(threads)
    model = build_model(width, device, getattr(torch, dtype))
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, *[IMAGE] * PATCHES, *range(2, 33)]])
    inputs = {"input_ids": ids.to(device), "pixel_values": pixels.to(device=device, dtype=getattr(torch, dtype))}
    rows: dict[str, Method | None] = {"uncut": None, "nothing to cut": METHODS["flowcut"](target_num=PATCHES)}
    for name in methods.split(",") if methods else METHODS:
        rows[name] = METHODS[name](target_num=PATCHES - 1)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    names = list(rows)
    for number in track(range(rounds + 1), description="rounds", console=Console(stderr=True)):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = prefill(model, inputs, rows[name], device)
            if number:
                seconds[name].append(elapsed)
    table = Table(
        title=f"{CLIP['num_hidden_layers']} + {DECODER_LAYERS} layers, decoder width {width}, {dtype}, {device}, "
        f"{rounds} rounds; uncut {statistics.median(seconds['uncut']):.2f} s"
    )
    for column in ("method", "seconds", "of uncut", "overhead"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, times in seconds.items():
        of_uncut, of_base = (
            statistics.median(ours / base for ours, base in zip(times, seconds[other], strict=True))
            for other in ("uncut", "nothing to cut")
        )
        table.add_row(name, f"{statistics.median(times):.2f}", f"{of_uncut:.3f}", f"{of_base - 1:+.1%}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
