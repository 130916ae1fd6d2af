"""What observing costs: seconds of a vision tower's pass with and without it, in turns, on the CPU's clock.

python benchmarks/observing.py                  # the model that ships with flowcut
python benchmarks/observing.py --clip --rounds 3   # CLIP-L at 336 pixels, LLaVA-1.5's tower, with random weights
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import torch
import typer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from flowcut import observe
from flowcut.checkpoints import load_mini


def clip() -> tuple[Any, torch.Tensor]:
    """LLaVA-1.5's tower with a language model of one narrow layer, and a picture."""
    vision = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                              image_size=336, patch_size=14)  # fmt: skip
    text = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration
    built = model._from_config(LlavaConfig(vision_config=vision, text_config=text), attn_implementation="sdpa")
    return built.eval(), torch.randn(1, 3, 336, 336)


def mini() -> tuple[Any, torch.Tensor]:
    """The model that ships with flowcut, and a picture."""
    model, _ = load_mini()
    size = model.config.vision_config.image_size
    return model, torch.randn(1, 3, size, size)


@torch.inference_mode()
def main(
    of_clip: Annotated[bool, typer.Option("--clip", help="CLIP-L instead of flowcut-mini's tower.")] = False,
    rounds: Annotated[int, typer.Option(help="Measured passes of each.")] = 15,
) -> None:
    """Print median seconds of CPU time and the ratios of passes that followed one another."""
    model, pixels = clip() if of_clip else mini()

    def seconds(**settings: Any) -> float:
        begin = time.process_time()
        model.get_image_features(pixel_values=pixels)
        return time.process_time() - begin

    def observed(**settings: Any) -> float:
        with observe(model, language=False, **settings):
            return seconds()

    kinds = {"uncut": seconds, "observed": observed, "with to_global": lambda: observed(to_global=True)}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, measure in kinds.items():
            spent = measure()
            if number:
                found[name].append(spent)
    for name, values in found.items():
        ratios = [one / uncut for one, uncut in zip(values, found["uncut"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:15} {statistics.median(values):7.3f} s   {middle:.3f} of uncut ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    typer.run(main)
