"""FlowCut+'s two choices: what goes in the middle of the tower, and what stays at its end."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..algorithm import coverage, determinant
from ..algorithm.compiling import compiled, run
from ..algorithm.selection import counts_mask, gather_tokens, top_in_order
from .cdpruner import scaled_relevance
from .saliency import unit
from .views import Selection

ANCHORS = 4
"""One in so many patches always stays in the middle of the tower."""


class Choice(Protocol):
    """The settings of :class:`~flowcut.methods.flowcut_plus.FlowCutPlus` that the choice at the end depends on."""

    @property
    def diversity(self) -> str:
        """See there."""

    @property
    def centre(self) -> bool:
        """See there."""


def halfway(patches: int, target: int) -> int:
    """What is left of ``patches`` when half of those that have to go are gone."""
    return target + (patches - target) // 2


def comparable(features: Tensor, centre: bool) -> Tensor:
    """``features`` ``[B, N, width]`` scaled to length 1; ``centre``: without their mean."""
    return unit(determinant.centred(features) if centre else features)


def novelty(normed: Tensor, strength: Tensor, power: float) -> Tensor:
    """What a patch adds to every fourth one, for a cut of up to half of all; ``[B, N]``.

    Every fourth patch stays (infinity). Another scores ``(1 - its largest cosine to one of these)`` times its
    protection: what goes is like something that stays, or matters little.

    Args:
        normed: ``[B, N, width]``, features of length 1.
        strength: ``[B, N]``, positive; to the power of ``power`` it protects a patch.
        power: see there.
    """
    return run(scored_new, torch.matmul(normed, normed[:, ::ANCHORS].mT), strength, power)


def scored_new(likeness: Tensor, strength: Tensor, power: float) -> Tensor:
    """See :func:`novelty`; ``likeness`` ``[B, N, A]`` to every fourth patch."""
    scores = (1.0 - likeness.amax(dim=2)).clamp(min=0.0) * strength**power
    scores[:, ::ANCHORS] = float("inf")
    return scores


def merged_into(normed: Tensor, index: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Which patch goes into which of those that stay: itself, or the one that it is most like.

    Args:
        normed: ``[B, N, width]``, features of length 1.
        index: ``[B, K]``, the patches that stay, filled up behind ``counts[b]`` entries.
        counts: how many of each row stay.

    Returns:
        Each patch's weights in what stays, ``[B, K, N]``: equal for all that go into it, and none goes into what is
        filled up. How many go into it, ``[B, K]``. What attention adds to its logits for that, ``[B, K]``.
    """
    width = index.shape[1]
    likeness = torch.matmul(normed, gather_tokens(normed, index).mT)
    # Nothing goes into what fills up a row, and it is hidden anyway.
    real = counts_mask(counts, width, index.device) if min(counts) < width else None
    together = compiled(joined, likeness, index, real)
    if together is not None:
        return together(likeness, index, real)
    # Every patch that stays is likest to itself, whatever it equals.
    likeness = likeness.scatter(1, index[:, None], float("inf"))
    if real is not None:
        likeness = likeness.masked_fill(~real[:, None], float("-inf"))
    weights = torch.zeros_like(likeness.mT).scatter_(1, likeness.argmax(dim=2)[:, None], 1.0)
    size = weights.sum(dim=2)
    least = size if real is None else size.clamp(min=1.0)
    return weights / least[..., None], size, least.log()


def joined(likeness: Tensor, index: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The end of :func:`merged_into` in a form that a compiler makes three kernels of.

    Args:
        likeness: ``[B, N, K]``.
        index: ``[B, K]``.
        real: ``[B, K]``, false where a row is filled up.
    """
    tokens, width = likeness.shape[1:]
    places = torch.arange(tokens, device=index.device)
    likeness = likeness.masked_fill(index[:, None] == places[:, None], float("inf"))
    if real is not None:
        likeness = likeness.masked_fill(~real[:, None], float("-inf"))
    into = likeness.argmax(dim=2)[:, None] == torch.arange(width, device=index.device)[:, None]
    size = into.sum(dim=2, dtype=torch.float32)
    least = size.clamp(min=1.0)
    return into / least[..., None], size, least.log()


def question_relevance(features: Tensor, text: Tensor) -> Tensor:
    """Mean cosine of every token ``[N, width]`` to the text ``[M, width]``, scaled to (0, 1], as CDPruner's."""
    return scaled_relevance(unit(features), text)


def chosen(
    method: Choice,
    states: Tensor,
    quality: Tensor,
    targets: tuple[int, ...],
    counts: tuple[int, ...],
    size: Tensor | None = None,
    first: Tensor | None = None,
) -> Selection:
    """Step 3 for rows that do not compete.

    Args:
        states: ``[B, N, width]``.
        quality: ``[B, N]``, the flow to its power, times that of the relevance.
        targets: how many of each row stay.
        counts: how many of each row are real.
        size: ``[B, N]``, how many patches each stands for; ``None``: each for itself alone.
        first: see :func:`~flowcut.algorithm.coverage.largest_coverage`.
    """
    whole = [target == count for target, count in zip(targets, counts, strict=True)]
    valid = None if min(counts) == states.shape[1] else counts_mask(counts, states.shape[1], states.device)
    if method.diversity == "none":
        ranked = quality if first is None else quality.scatter(1, first, float("inf"))
        return Selection(top_in_order(ranked, targets, valid), targets)
    features = determinant.centred(states, valid) if method.centre else states.float()
    # A row that keeps everything takes no steps.
    steps = tuple(0 if all_stay else target for target, all_stay in zip(targets, whole, strict=True))
    if method.diversity == "coverage":
        index = coverage.largest_coverage(features, quality, steps, size, valid, first)
    else:
        index = determinant.largest_determinant(features, quality, steps, valid, first)
    if any(whole):
        every = torch.arange(max(targets), device=index.device)
        index = torch.nn.functional.pad(index, (0, max(targets) - index.shape[1]))
        lengths = torch.tensor(targets, device=index.device)[:, None]
        everything = every.masked_fill(every >= lengths, 0)
        index = torch.where(torch.tensor(whole, device=index.device)[:, None], everything, index)
    return Selection(index, targets)


def competing(
    method: Choice,
    states: Tensor,
    quality: Tensor,
    targets: tuple[int, ...],
    counts: tuple[int, ...],
    size: Tensor | None = None,
) -> list[Tensor]:
    """Step 3 over all frames of one video; every frame keeps the best by quality at least.

    Returns:
        What each frame keeps, ascending.
    """
    frames, width = quality.shape
    real = counts_mask(counts, width, states.device)
    best = quality.masked_fill(~real, -1.0).argmax(dim=1)
    starts = torch.tensor([sum(counts[:frame]) for frame in range(frames)], device=states.device)
    # The real patches of all frames, one frame behind the other.
    places = real.flatten().to(torch.uint8).sort(descending=True, stable=True).indices[: sum(counts)]
    index = chosen(
        method,
        states.flatten(0, 1)[places][None],
        quality.flatten()[places][None],
        (sum(targets),),
        (sum(counts),),
        None if size is None else size.flatten()[places][None],
        first=(starts + best)[None],
    ).index[0]
    kept = places[index]
    lengths: list[int] = torch.bincount(kept // width, minlength=frames).tolist()
    return list(torch.split(kept % width, lengths))
