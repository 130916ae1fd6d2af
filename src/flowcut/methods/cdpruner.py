"""CDPruner: tokens that differ and matter to the question, by a conditional DPP (NeurIPS 2025, arXiv 2506.10967)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..algorithm.compiling import STEPS, compiled, wanted
from .base import Method
from .policies import ProjectorPolicy
from .saliency import unit
from .views import ProjectedView


@dataclass(frozen=True)
class CDPruner(Method):
    """Greedy MAP inference of a determinantal point process whose kernel is similarity times relevance on both sides.

    Similarity is the cosine of projected features, as released. Relevance is taken from CLIP's text encoder there,
    which the models of transformers do not hold. Here it is the mean cosine between a projected feature and the
    language model's own embeddings of the text behind the image (of all text where none follows), scaled to (0, 1] over
    the image's tokens; this measures what the released code's relevance does, but is not the same number.

    Attributes:
        relevance: ``"text_embeddings"``, or ``"none"``: the determinantal point process alone, which reads no text.
    """

    name: ClassVar[str] = "cdpruner"
    summary: ClassVar[str] = "diverse tokens that match the text (conditional determinantal point process)"
    stage: ClassVar[str] = "behind the projector"
    paper: ClassVar[str] = "NeurIPS 2025, arXiv 2506.10967"
    reads_text: ClassVar[bool] = True
    cuts_tower: ClassVar[bool] = False
    cuts_projected: ClassVar[bool] = True

    relevance: Literal["text_embeddings", "none"] = "text_embeddings"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relevance not in ("text_embeddings", "none"):
            raise ValueError(f'relevance must be "text_embeddings" or "none", got {self.relevance!r}.')

    def projector_policy(self) -> ProjectorPolicy:
        return CDPrunerPolicy(self.relevance == "text_embeddings")


class CDPrunerPolicy(ProjectorPolicy):
    """The kernel of one image and its greedy choice."""

    def __init__(self, conditional: bool) -> None:
        self.conditional = conditional

    def select(self, view: ProjectedView) -> Tensor:
        normed = unit(view.features)
        kernel = normed @ normed.T
        if self.conditional and len(view.text):
            relevance = scaled_relevance(normed, view.text)
            kernel = relevance[:, None] * kernel * relevance
        return largest_determinant(kernel, view.target)


def scaled_relevance(normed: Tensor, text: Tensor) -> Tensor:
    """Mean cosine of every token ``[N, width]`` (of length 1) to the text ``[M, width]``, scaled to (0, 1]."""
    relevance = (normed @ unit(text).T).mean(dim=1)
    least, most = relevance.min(), relevance.max()
    return (relevance - least + 1e-6) / (most - least).clamp(min=1e-6)


def largest_determinant(kernel: Tensor, tokens: int) -> Tensor:
    """Greedily the set whose kernel has the largest determinant; int64 ``[tokens]``, ascending.

    By incremental Cholesky factors (Chen et al., NeurIPS 2018), which every choice extends by one row.

    Args:
        kernel: ``[N, N]``, symmetric, positive semi-definite.
        tokens: how many. Beyond the kernel's rank, where all determinants are 0, its diagonal decides.
    """
    # The factors are kept without roots: what a choice explains of every token, and the same over its own gain. The
    # latter stands beside the kernel, so that one look-up brings all that the next choice is compared with.
    joins = wanted()
    explained = kernel.new_zeros(tokens, len(kernel)) if joins else kernel.new_empty(tokens, len(kernel))
    known = torch.nn.functional.pad(kernel, (0, tokens))
    gain = kernel.diagonal().clamp(min=1e-12)
    # Less of a token's own entry is rounding. What is chosen stays below all others.
    least, most = (gain * 1e-6).clamp_(min=1e-12), torch.full_like(gain, float("inf"))
    chosen: list[Tensor] = []
    while (number := len(chosen)) < tokens:
        behind = number + STEPS
        state = (known, explained, gain, least, most, STEPS)
        together = compiled(determinant_steps, *state) if joins and behind <= tokens else None
        if together is not None:
            picked, rows, shares, gain, most = together(*state)
            chosen += picked
            torch.stack(rows, out=explained[number:behind])
            torch.stack(shares, dim=1, out=known[:, len(kernel) + number : len(kernel) + behind])
            continue
        largest, best = gain.max(dim=0, keepdim=True)
        chosen.append(best)
        row, own = known.index_select(0, best)[0].tensor_split([len(kernel)])
        torch.addmv(row, explained[:number].T, own[:number], alpha=-1.0, out=explained[number])
        torch.div(explained[number], largest, out=known[:, len(kernel) + number])
        most.index_fill_(0, best, float("-inf"))
        gain = gain.addcmul(explained[number], known[:, len(kernel) + number], value=-1.0).clamp_(least, most)
    return torch.cat(chosen).sort().values


def determinant_steps(
    known: Tensor, explained: Tensor, gain: Tensor, least: Tensor, most: Tensor, steps: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor]:
    """Steps of :func:`largest_determinant` in a form that a compiler makes two kernels each of.

    Args:
        known: ``[N, N + K]``, the kernel beside ``explained`` over each choice's own gain.
        explained: ``[K, N]``, zeros behind the steps so far.
        gain, least, most: ``[N]``, of every token, and its bounds.
        steps: how many.

    Returns:
        Of every step the token, int64 ``[1]``, and what joins ``explained`` and ``known``, ``[N]`` each; then ``gain``
        and ``most`` behind them.
    """
    tokens = len(gain)
    places = torch.arange(tokens, device=gain.device)
    picked: list[Tensor] = []
    rows: list[Tensor] = []
    shares: list[Tensor] = []
    for _ in range(steps):
        largest, best = gain.max(dim=0, keepdim=True)
        row, own = known.index_select(0, best)[0].tensor_split([tokens])
        # No matrix product, which no compiler would join with what follows.
        row = row - (explained * own[:, None]).sum(dim=0)
        for earlier, its_share in zip(rows, shares, strict=True):
            row = row - earlier * its_share.index_select(0, best)
        share = row / largest
        most = torch.where(places == best, float("-inf"), most)
        gain = gain.addcmul(row, share, value=-1.0).clamp(least, most)
        picked.append(best)
        rows.append(row)
        shares.append(share)
    return picked, rows, shares, gain, most
