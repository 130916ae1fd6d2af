"""Greedy decoding of a batch of prompts that may go on behind a common cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..checkpoints.loading import LoadedModel
from ..stages.sequence.cache_argument import CACHE


def greedy_answers(
    loaded: LoadedModel,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    cache: Cache | None = None,
    cached: int = 0,
    first: Mapping[str, Any] | None = None,
) -> list[str]:
    """What the model answers greedily, in one batch that is padded on the left.

    Args:
        loaded: the model and its processor; a method may be attached.
        prompts: token ids ``[length]`` of every sample, those that are cached left out.
        max_new_tokens: at most so many tokens per answer.
        cache: of the columns in front, one row per prompt; it is used up.
        cached: columns, as the caller counts them (nothing cut), that the cache stands for.
        first: more arguments of the first pass, such as encoded images.
    """
    model: Any = loaded.model
    ends = end_tokens(model)
    filler = min(ends, default=0)
    tokens, real = padded_left(prompts, filler)
    mask = torch.cat([real.new_ones(len(prompts), cached), real], dim=1)
    places = (cached + real.cumsum(dim=1) - 1).clamp(min=0)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=tokens.device)
    new: list[Tensor] = []
    more = dict(first or {})
    while not bool(done.all()) and len(new) < max_new_tokens:
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=places,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: cache, **more},
        )
        cache, more = output[CACHE], {}
        chosen = output.logits[:, -1].argmax(dim=-1)
        new.append(chosen.masked_fill(done, filler))
        done = done | is_one_of(chosen, ends)
        tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        places = places[:, -1:] + 1
    generated = torch.stack(new, dim=1)
    return decoded(loaded, [cut_at_end(row, ends) for row in generated])


def padded_left(rows: Sequence[Tensor], filler: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one batch ``[B, L]`` that ends with every row's last token, and 1 where they are real."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=filler, padding_side="left")
    lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens, (columns[None] >= tokens.shape[1] - lengths[:, None]).long()


def is_one_of(ids: Tensor, wanted: Sequence[int]) -> Tensor:
    """Boolean, of the shape of ``ids``."""
    return torch.isin(ids, torch.tensor(list(wanted), device=ids.device))


def end_tokens(model: Any) -> list[int]:
    """The ids that end an answer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return []
    return list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]


def cut_at_end(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    """What stands before the first end token."""
    found = is_one_of(tokens, ends).nonzero()
    return tokens[: int(found[0])] if len(found) else tokens


def decoded(loaded: LoadedModel, rows: Sequence[Tensor]) -> list[str]:
    """The texts of generated tokens."""
    return [loaded.processor.decode(row, skip_special_tokens=True).strip() for row in rows]
