"""Time of the vision tower with FlowCut against the uncut tower, at the real sizes of CLIP ViT-L/14-336.

Weights are random, but query and key weights are drawn with a larger spread (``--attention-std``), so that the
global token's attention is concentrated as in a trained tower and the schedule cuts early. Every round times the
uncut tower and every budget once, in an order that rotates; the figures are medians over the rounds, of the seconds
and of each round's ratio to its own uncut pass, which a drifting machine disturbs least.

Both sides run the same attention implementation (SDPA unless told otherwise). "uncut" is the tower as the model runs
it without flowcut: all 24 layers, although LLaVA reads the output of the 23rd. A budget of 576 cuts nothing and shows
what leaving out that layer alone gives; 575 shows the cost of observing.

    python benchmarks/vision_tower.py --rounds 7 --threads 1
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from real_sizes import CLIP, IMAGE, LLAMA
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import LlavaConfig, LlavaForConditionalGeneration

from flowcut import FlowCut, attach

ROWS = {
    None: "uncut",
    576: "576: nothing to cut, last layer not run",
    575: "575: observed in every layer, one token cut",
}


def build_model(attention: str, attention_std: float, device: str, dtype: torch.dtype) -> Any:
    """LLaVA-1.5's tower with random weights in front of a token-sized language model."""
    torch.manual_seed(0)
    text = {**LLAMA, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    config = LlavaConfig(vision_config=CLIP, text_config=text, image_token_id=IMAGE)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.model.vision_tower.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.normal_(0.0, attention_std)
    return model.to(device=device, dtype=dtype)


def timed(model: Any, pixels: torch.Tensor) -> float:
    """Seconds for one pass through tower and projector."""
    if pixels.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    model.get_image_features(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(
    targets: Annotated[str, typer.Option(help="budgets, separated by commas")] = ("576,575,192,128,64"),
    rounds: Annotated[int, typer.Option(help="timed rounds after one warm-up")] = 7,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
    batch: Annotated[int, typer.Option(help="images in one pass")] = 1,
    attention: Annotated[str, typer.Option(help="attention implementation of both sides")] = "sdpa",
    attention_std: Annotated[float, typer.Option(help="spread of query and key weights")] = 0.06,
    device: Annotated[str, typer.Option()] = "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    output: Annotated[Path | None, typer.Option(help="write the figures as JSON")] = None,
) -> None:
    """Measure and print one table."""
    torch.set_num_threads(threads)
    model = build_model(attention, attention_std, device, getattr(torch, dtype))
    pixels = torch.randn(batch, 3, 336, 336, generator=torch.Generator().manual_seed(1))
    pixels = pixels.to(device=device, dtype=getattr(torch, dtype))
    budgets: list[int | None] = [None, *(int(target) for target in targets.split(","))]
    seconds: dict[int | None, list[float]] = {budget: [] for budget in budgets}
    mean_tokens: dict[int | None, float] = {None: 577.0}
    with torch.no_grad():
        for number in track(range(rounds + 1), description="rounds", console=Console(stderr=True)):
            shift = number % len(budgets)
            for budget in budgets[shift:] + budgets[:shift]:
                elapsed = run_once(model, pixels, budget, mean_tokens)
                if number:
                    seconds[budget].append(elapsed)
    report(
        seconds,
        mean_tokens,
        f"batch {batch}, {attention}, {dtype}, {device}, {threads} thread(s), {rounds} rounds",
    )
    if output is not None:
        rows = [
            {"target_num": budget, "seconds": times, "mean_tokens": mean_tokens[budget]}
            for budget, times in seconds.items()
        ]
        output.write_text(json.dumps(rows, indent=1) + "\n")


def run_once(model: Any, pixels: torch.Tensor, budget: int | None, mean_tokens: dict[int | None, float]) -> float:
    """One timed pass; ``None`` is the model with nothing attached."""
    if budget is None:
        return timed(model, pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = attach(model, FlowCut(target_num=budget))
    with handle:
        elapsed = timed(model, pixels)
        if budget not in mean_tokens:
            into = model.get_image_features(pixels[:1]).flowcut_images[0].tokens_into_layer
            mean_tokens[budget] = sum(into) / len(into)
    return elapsed


def report(seconds: dict[int | None, list[float]], mean_tokens: dict[int | None, float], title: str) -> None:
    """Print the table."""
    table = Table(title=title)
    for column in ("target_num", "tokens into a layer (mean)", "seconds (median)", "min", "max", "of uncut"):
        table.add_column(column, justify="right")
    for budget, times in seconds.items():
        ratios = [ours / uncut for ours, uncut in zip(times, seconds[None], strict=True)]
        table.add_row(
            ROWS.get(budget, str(budget)),
            f"{mean_tokens[budget]:.0f}",
            f"{statistics.median(times):.3f}",
            f"{min(times):.3f}",
            f"{max(times):.3f}",
            f"{statistics.median(ratios):.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
