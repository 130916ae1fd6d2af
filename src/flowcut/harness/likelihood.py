"""How likely a model finds given continuations of prompts with pictures, with whatever is attached to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.loading import LoadedModel
from .processing import batch_inputs
from .prompts import Prompt, written_prompt


@torch.inference_mode()
def continuation_losses(
    loaded: LoadedModel, prompts: Sequence[Prompt], continuations: Sequence[str]
) -> list[tuple[float, bool]]:
    """The mean negative log-likelihood of every continuation's tokens, and whether each of them is the likeliest.

    An attached model's logits are laid out by the columns of ``input_ids``, so a token's are those of the column before
    it, whatever was cut.

    Args:
        loaded: the model and its processor.
        prompts: the questions.
        continuations: a text for each; its tokens are put behind the prompt's.

    Raises:
        ValueError: a continuation has no tokens.
    """
    if len(prompts) > 1 and not all(prompt.images for prompt in prompts):
        pairs = zip(prompts, continuations, strict=True)
        return [found for prompt, text in pairs for found in continuation_losses(loaded, [prompt], [text])]
    texts = [written_prompt(loaded.processor, prompt.messages) for prompt in prompts]
    inputs = batch_inputs(loaded, texts, [prompt.images for prompt in prompts])
    tokenizer = loaded.processor.tokenizer
    behind = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in continuations]
    for text, tokens in zip(continuations, behind, strict=True):
        if not len(tokens):
            raise ValueError(f"The continuation {text!r} has no tokens, so it has no likelihood.")
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    arguments = continued(inputs, behind, filler)
    longest = max(map(len, behind))
    model: Any = loaded.model
    logits = model(**arguments, logits_to_keep=longest + 1).logits[:, :-1].float()
    losses = []
    for row, tokens in enumerate(behind):
        wanted = tokens.to(logits.device)
        own = logits[row, longest - len(tokens) :].log_softmax(dim=-1)
        chosen = own.gather(1, wanted[:, None])[:, 0]
        losses.append((-float(chosen.mean()), bool((own.argmax(dim=-1) == wanted).all())))
    return losses


def continued(inputs: Any, behind: Sequence[Tensor], filler: int) -> dict[str, Any]:
    """The inputs of a batch with more tokens behind every row, padded on the left.

    Whatever has a value for every token gets zeros for the new ones, but for the mask, which gets ones.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    lengths = [int(row.sum()) for row in mask]
    width = max(length + len(tokens) for length, tokens in zip(lengths, behind, strict=True))
    arguments = dict(inputs)
    for name, values in inputs.items():
        if not isinstance(values, Tensor) or values.shape != ids.shape:
            continue
        laid = values.new_full((len(values), width), filler if name == "input_ids" else 0)
        for row, (length, tokens) in enumerate(zip(lengths, behind, strict=True)):
            new = {"input_ids": tokens.to(values), "attention_mask": values.new_ones(len(tokens))}
            more = new.get(name, values.new_zeros(len(tokens)))
            laid[row, width - length - len(tokens) :] = torch.cat([values[row, values.shape[1] - length :], more])
        arguments[name] = laid
    return arguments
