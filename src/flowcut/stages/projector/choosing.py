"""The cut behind the projector: which of an image's visual tokens go on, given their features and the text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ...algorithm.selection import with_prefix
from ...errors import NonFiniteError
from ...methods.base import Method
from ...methods.policies import ProjectorPolicy
from ...methods.views import ProjectedView
from ...models.base import PREFIX
from ...trace import ImageTrace
from ..tower.tiles import keep_separators_of
from .features import TRACES


def cut_projected(method: Method, outputs: Any, traces: list[ImageTrace], texts: Sequence[Tensor]) -> Any:
    """A tower's output, its projected features reduced to the tokens that ``method`` chooses.

    Args:
        method: a method that cuts behind the projector.
        outputs: what ``get_image_features`` gave; it is left as it is.
        traces: its images.
        texts: ``[M, width]`` for every image, see :class:`~flowcut.methods.views.ProjectedView`.

    Raises:
        ValueError: a budget does not even cover the prefix tokens and one patch.
        NonFiniteError: the model's features are NaN or infinite.
    """
    if all(trace.whole for trace in traces):
        return outputs
    policy = method.projector_policy()
    features = list(outputs.pooler_output)
    chosen, staying = [], []
    for trace, tokens, text in zip(traces, features, texts, strict=True):
        if trace.whole:
            chosen.append(trace)
            staying.append(torch.ones(len(tokens), dtype=torch.bool, device=tokens.device))
            continue
        after, stays = choose(method, policy, trace, tokens, text)
        chosen.append(after)
        staying.append(stays)
    cut = copy.copy(outputs)
    cut.pooler_output = only_staying(staying, features)
    if isinstance(outputs.pooler_output, Tensor):
        cut.pooler_output = torch.stack(cut.pooler_output)
    intermediate = getattr(outputs, "deepstack_features", None)
    if intermediate is not None:
        cut.deepstack_features = [only_staying(staying, level) for level in intermediate]
    setattr(cut, TRACES, chosen)
    return cut


def only_staying(staying: Sequence[Tensor], features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Features ``[tokens, width]`` of every image, without those of tokens that do not stay."""
    return tuple(tokens[stays.to(tokens.device)] for stays, tokens in zip(staying, features, strict=True))


def choose(
    method: Method, policy: ProjectorPolicy, trace: ImageTrace, features: Tensor, text: Tensor
) -> tuple[ImageTrace, Tensor]:
    """What becomes of one image, ``features`` ``[visual tokens, width]``; see :func:`cut_projected`.

    The tower may have cut some of its tokens before; the choice is among those that are left.

    Returns:
        Its trace, and which of the tokens given stay: boolean ``[visual tokens]``, or their numbers.
    """
    uncut = trace.visual_tokens == trace.placeholders
    if trace.layout.plain and uncut and all(tile.handed_on is None for tile in trace.tiles):
        return choose_of_plain(policy, trace, features, text)
    left = trace.placeholder_kept.to(features.device).nonzero()[:, 0]
    tokens = trace.layout.tokens.to(features.device)[left]
    eligible = (tokens >= 0).nonzero()[:, 0]
    prefix = int((trace.layout.tokens == PREFIX).sum())
    target = room_for_patches(trace, prefix, len(eligible))
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        own = features.detach()[eligible].float()
        places = tokens[eligible]
        view = ProjectedView(own, places, trace.grid, text.detach().float(), target, handed_on_of(trace, places))
        index = policy.select(view)
        check_projected(own)
    kept = tokens == PREFIX
    kept[eligible[index]] = True
    if method.image_newline:
        kept |= keep_separators_of(tokens, kept, trace.tiles)
    after = torch.zeros_like(trace.placeholder_kept, device=features.device).index_fill(0, left[kept], True)
    return replace(
        trace, placeholder_kept=after, visual_tokens=int(kept.sum()), chosen=places[index].sort().values
    ), kept


def choose_of_plain(
    policy: ProjectorPolicy, trace: ImageTrace, features: Tensor, text: Tensor
) -> tuple[ImageTrace, Tensor]:
    """:func:`choose` where the tower cut nothing and its patches are the tokens in their order, so that all is known.

    Returns:
        The image's trace, and the tokens that stay: int64, ascending.
    """
    patches = trace.tiles[0].patches
    prefix = len(features) - patches
    target = room_for_patches(trace, prefix, patches)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        own = features.detach()[prefix:].float()
        places = torch.arange(patches, device=own.device)
        index = policy.select(ProjectedView(own, places, trace.grid, text.detach().float(), target))
        check_projected(own)
    stays = with_prefix(index[None], prefix)[0]
    after = torch.zeros(len(features), dtype=torch.bool, device=index.device).index_fill_(0, stays, True)
    return replace(trace, placeholder_kept=after, visual_tokens=prefix + target, chosen=index), stays


def room_for_patches(trace: ImageTrace, prefix: int, most: int) -> int:
    """How many patches an image's budget leaves room for, ``most`` at most.

    Raises:
        ValueError: none.
    """
    target = min(trace.target - prefix, most)
    if target < 1:
        raise ValueError(
            f"A budget of {trace.target} visual token(s) leaves no patch: the model also reads {prefix} prefix "
            f"token(s) of the tower (its CLS token). Give at least {prefix + 1}."
        )
    return target


def check_projected(features: Tensor) -> None:
    """Refuse to choose among features that are not finite; the host waits for the device.

    Raises:
        NonFiniteError: says what to do.
    """
    # One number tells: with NaN or an infinite value among them, a sum is not finite.
    if not isfinite(features.sum().item()):
        raise NonFiniteError(
            "The projector produced NaN or infinite features, so visual tokens cannot be ranked. Check the pixel "
            "values and the model's dtype (float16 can overflow; try bfloat16)."
        )


def handed_on_of(trace: ImageTrace, places: Tensor) -> Tensor | None:
    """What the method's policy in the tower handed on of the patches at ``places`` of an image's grid, ``[N, C]``."""
    numbers = [tile.handed_on[: len(tile.kept)] for tile in trace.tiles if tile.handed_on is not None]
    if len(numbers) < len(trace.tiles) or trace.layout.pooled is not None or trace.layout.blend is not None:
        return None
    left = trace.kept.to(places.device)
    row = torch.zeros(trace.patches, dtype=torch.long, device=places.device)
    row[left] = torch.arange(len(left), device=places.device)
    return torch.cat(numbers).to(places.device)[row[places]]


def texts_of_images(embedding: nn.Module, call: dict[str, Any], image: Tensor, count: int, length: int) -> list[Tensor]:
    """The embeddings ``[M, width]`` of the text behind every image of a call; of all text where none follows.

    Args:
        embedding: the model's input embedding.
        call: arguments of the base model's forward, uncut.
        image: int64 ``[B, L]``, the number of the image that each column belongs to, -1 for text.
        count: how many images there are.
        length: columns of the prompt; those behind it were generated.
    """
    embeds: Tensor | None = call.get("inputs_embeds")
    if embeds is None:
        # Placeholder ids may lie outside the embedding.
        embeds = embedding(call["input_ids"].masked_fill(image >= 0, 0))
    is_text = (image == -1) & (torch.arange(image.shape[1], device=image.device) < length)
    mask: Tensor | None = call.get("attention_mask")
    if mask is not None:
        is_text &= mask[:, -image.shape[1] :].to(is_text.device).bool()
    texts = []
    for number in range(count):
        row, columns = (image == number).nonzero().unbind(dim=1)
        own = is_text[row[0]]
        behind = own & (torch.arange(len(own), device=own.device) > columns[-1])
        texts.append(embeds[row[0]][torch.where(behind.any(), behind, own)])
    return texts
