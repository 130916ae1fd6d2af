"""Encode a picture with flowcut in one process, and have vLLM answer from its kept tokens, sent as `image_embeds`.

    vllm serve llava-hf/llava-1.5-7b-hf --enable-mm-embeds --limit-mm-per-prompt '{"image": 0}'
    python examples/serve_embeddings.py examples/pictures/astronaut.jpg "What is it?" --model llava-hf/llava-1.5-7b-hf

The server runs vLLM's own LLaVA, without its vision tower, and knows nothing of flowcut. A picture is as many tokens as
it is sent, numbered one after the other. For LLaVA-1.5 and others whose picture is one row of placeholders.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from flowcut import FlowCutPlus, attach_encoder
from flowcut.checkpoints.loading import load_model


@torch.no_grad()
def encode(model: str, picture: Path, target_num: int) -> torch.Tensor:
    """The kept tokens of a picture, ``[target_num, width]``, in float32."""
    loaded: Any = load_model(model)
    pixels = loaded.processor.image_processor(images=Image.open(picture).convert("RGB"), return_tensors="pt")
    with attach_encoder(loaded.model, FlowCutPlus(target_num=target_num, positions="compact")):
        (tokens,) = loaded.model.model.get_image_features(**pixels.to(loaded.model.device)).pooler_output
    return tokens.float().cpu()


def ask(server: str, model: str, question: str, tokens: torch.Tensor, max_tokens: int) -> dict[str, Any]:
    """The server's answer to a question about a picture of which it is sent ``tokens``."""
    packed = io.BytesIO()
    np.save(packed, tokens.numpy())
    picture = {"type": "image_embeds", "image_embeds": base64.b64encode(packed.getvalue()).decode()}
    message = {"role": "user", "content": [picture, {"type": "text", "text": question}]}
    body = {"model": model, "messages": [message], "max_tokens": max_tokens, "temperature": 0}
    request = urllib.request.Request(
        f"{server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


def main(
    picture: Annotated[Path, typer.Argument(help="A picture file.")],
    question: str,
    model: Annotated[str, typer.Option(help="The checkpoint that the server runs, a folder or a hub id.")],
    server: Annotated[str, typer.Option(help="The server's address.")] = "http://localhost:8000",
    target_num: Annotated[int, typer.Option(help="Visual tokens kept of the picture.")] = 64,
    max_tokens: Annotated[int, typer.Option(help="Of the answer.")] = 64,
) -> None:
    """Encode, ask, and print the answer with the number of tokens in the prompt."""
    told = ask(server, model, question, encode(model, picture, target_num), max_tokens)
    print(told["choices"][0]["message"]["content"])
    print(f"{told['usage']['prompt_tokens']} prompt tokens, {target_num} of them the picture's")


if __name__ == "__main__":
    typer.run(main)
