"""FlowCut+: flow says what matters, a determinant says what is already said. Ours; see docs/flowcut-plus.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..algorithm import determinant, flow
from ..algorithm.selection import counts_mask, gather_tokens, top_in_order
from .base import Method, Positions
from .flowcut import FlowCutDecoderPolicy
from .policies import DecoderPolicy, ProjectorPolicy, VisionPolicy
from .saliency import check_finite, unit
from .views import LayerView, OutputView, ProjectedView, Selection, TowerPass

ANCHORS = 4
"""One in so many patches always stays in the middle of the tower."""

ALLOWED = {
    "diversity": ("determinant", "none"),
    "early": ("repeated", "flow", "none"),
    "relevance": ("none", "text"),
}
"""Values of the fields that are words."""


@dataclass(frozen=True)
class FlowCutPlus(Method):
    """Half of what has to go goes in the middle of the tower; the rest is chosen for flow and difference together.

    1. Information flow (FlowCut's score: relation, semantic relevance, density) is gathered over the layers.
    2. In the middle of the tower half of the patches that have to go are cut, so that it costs no more than FlowCut.
    3. Behind the last layer that is read, the patches are taken one by one that raise a determinant most: that of the
       kernel ``q_i cos(x_i, x_j) q_j`` over features without their mean, where ``q`` is the flow to a small power. So a
       patch counts for its flow, and for what no patch taken before has said.

    With ``relevance="text"`` step 3 follows the projector and reads the prompt: ``q`` is multiplied by a power of what
    CDPruner takes for a token's relevance to the question, of its projected features; differences are still those
    between the tower's. Then the choice cannot be cached.

    Tiles of one image share its budget equally; the frames of a video compete for theirs.

    Attributes:
        history: weight of the past in the gathered flow; 0 takes each layer's own.
        quality: exponent of the flow in step 3; 0 chooses for difference alone.
        centre: whether the mean over the image's patches is subtracted from features before they are compared.
        diversity: ``"determinant"``, or ``"none"``: the best by flow (step 3 of FlowCut itself).
        early: which patches step 2 cuts. ``"repeated"``: every fourth patch stays, and of the others those go that are
            most like one of these; ``"flow"``: those of least flow; ``"none"`` cuts nothing there.
        early_quality: exponent of the flow in ``"repeated"``: how much it protects a patch that is like another.
        relevance_power: exponent of the relevance.
        relevance: ``"none"``, or ``"text"``: the question decides with.
        decoder_layer: a decoder layer behind which FlowCut's second cut follows, where the paper has one (LLaVA-NeXT,
            Qwen2-VL): twice the budget then enters the language model. ``None``: the tower cuts to the budget itself.
    """

    name: ClassVar[str] = "flowcut_plus"
    summary: ClassVar[str] = "information flow times difference: a determinant over what the tower saw"
    stage: ClassVar[str] = "tower, or tower and behind the projector"
    ranks_pooled: ClassVar[bool] = True

    positions: Positions = "original"
    history: float = 0.5
    quality: float = 0.5
    centre: bool = True
    diversity: Literal["determinant", "none"] = "determinant"
    early: Literal["repeated", "flow", "none"] = "repeated"
    early_quality: float = 0.5
    relevance: Literal["none", "text"] = "none"
    relevance_power: float = 0.5
    decoder_layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.history < 1.0:
            raise ValueError(f"history must lie in [0, 1) (0 looks at the current layer only), got {self.history!r}.")
        for name in ("quality", "early_quality", "relevance_power"):
            exponent: float = getattr(self, name)
            if not exponent >= 0.0:
                raise ValueError(f"{name} must be at least 0 (0 leaves it out), got {exponent!r}.")
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        reads = self.relevance == "text"
        # Of an instance, since the other form can be cached whatever is asked.
        object.__setattr__(self, "reads_text", reads)
        object.__setattr__(self, "cuts_projected", reads)

    def decoder_layers(self, second_cut: bool) -> tuple[int, ...]:
        return (self.decoder_layer,) if second_cut and self.decoder_layer is not None else ()

    def decoder_policy(self) -> DecoderPolicy:
        return FlowCutDecoderPolicy()

    def tile_targets(self, tokens: int, tiles: int, patches: int, second_cut: bool) -> tuple[int, ...]:
        shares = super().tile_targets(self._entering(tokens, second_cut), tiles, patches, second_cut)
        return tuple(halfway(patches, share) if self.cuts_projected else share for share in shares)

    def packed_target(self, tokens: int, available: int, second_cut: bool) -> int:
        target = min(self._entering(tokens, second_cut), available)
        return halfway(available, target) if self.cuts_projected else target

    def _entering(self, tokens: int, second_cut: bool) -> int:
        """What enters the language model of an image with a budget of ``tokens``."""
        return 2 * tokens if self.decoder_layers(second_cut) else tokens

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        return FlowCutPlusPolicy(self, tower)

    def projector_policy(self) -> ProjectorPolicy:
        return RelevantPolicy(self)


class FlowCutPlusPolicy(VisionPolicy):
    """Gathers flow, cuts once in the middle of the tower, and chooses behind its last layer."""

    def __init__(self, method: FlowCutPlus, tower: TowerPass) -> None:
        self.method = method
        self.tower = tower
        self.early_layer = tower.last_layer // 2
        self.counts: tuple[int, ...] = (tower.patches,) * len(tower.targets)
        self.flow: Tensor | None = None
        self.view: LayerView | None = None
        self.states: Tensor | None = None

    def observe(self, view: LayerView) -> None:
        valid = None if view.valid is None else view.valid[:, view.prefix :]
        relation = flow.share(flow.relation(view.query, view.key, view.scaling, view.prefix, view.valid), valid)
        semantic = flow.share(flow.semantic(view.value, view.prefix, valid=view.valid), valid)
        score = flow.group_means(flow.score(relation, semantic, flow.density(view.value, view.prefix)), view.group)
        self.flow = flow.accumulate(self.flow, score, self.method.history)
        self.view = view

    def select(self, layer: int) -> Selection | None:
        view, self.view = self.view, None
        if layer != self.early_layer or layer == self.tower.last_layer or self.method.early == "none":
            return None
        assert self.flow is not None and view is not None
        targets = self.tower.targets
        if not self.method.cuts_projected:
            targets = tuple(halfway(self.tower.patches, target) for target in targets)
        if targets == self.counts:
            return None
        scores = self.flow
        if self.method.early == "repeated":
            features = view.key[:, :, view.prefix :].transpose(1, 2).flatten(2)
            features = features.reshape(*self.flow.shape, -1)
            scores = novelty(features, self.flow**self.method.early_quality, self.method.centre)
        index = top_in_order(scores, targets)
        self.flow = gather_tokens(self.flow, index)
        self.counts = targets
        return Selection(index, targets)

    def reduce(self, view: OutputView) -> Selection | None:
        if view.layer != self.tower.last_layer:
            return None
        assert self.flow is not None
        check_finite(view.layer, self.flow, view.states)
        self.states = view.states
        targets = self.tower.targets
        if targets == self.counts:
            return None
        selection = self._choose(view.states, self.flow, targets, self.counts)
        self.flow, self.states = (gather_tokens(kept, selection.index) for kept in (self.flow, self.states))
        return selection

    def handed_on(self) -> Tensor | None:
        if not self.method.cuts_projected or self.flow is None or self.states is None:
            return None
        return torch.cat([self.flow[..., None], self.states.float()], dim=2)

    def choose_pooled(self, weights: Tensor, targets: tuple[int, ...]) -> Selection:
        assert self.states is not None
        states = torch.matmul(weights.to(self.states.dtype), self.states)
        counts = (states.shape[1],) * len(states)
        return self._choose(states, self.rank() @ weights.mT.float(), targets, counts)

    def rank(self) -> Tensor:
        assert self.flow is not None
        return self.flow

    def _choose(self, states: Tensor, strength: Tensor, targets: tuple[int, ...], counts: tuple[int, ...]) -> Selection:
        """The patches that stay, of rows with ``counts`` real ones; the frames of a video compete for its budget."""
        quality = strength**self.method.quality
        if not self.tower.frames:
            return chosen(self.method, states, quality, targets, counts)
        rows: list[Tensor] = []
        first = 0
        for frames in self.tower.frames:
            own = slice(first, first + frames)
            rows += competing(self.method, states[own], quality[own], targets[own], counts[own])
            first += frames
        kept = tuple(len(row) for row in rows)
        return Selection(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), kept)


class RelevantPolicy(ProjectorPolicy):
    """The choice that reads the question, on one image's projected features and what the tower handed on of them."""

    def __init__(self, method: FlowCutPlus) -> None:
        self.method = method

    def select(self, view: ProjectedView) -> Tensor:
        # Without word from the tower (pooled frames), the projected features take the place of its own.
        states, quality = view.features, view.features.new_ones(len(view.features))
        if view.handed_on is not None:
            states, quality = view.handed_on[:, 1:], view.handed_on[:, 0] ** self.method.quality
        if len(view.text):
            quality = quality * question_relevance(view.features, view.text) ** self.method.relevance_power
        tokens = (len(view.features),)
        return chosen(self.method, states[None], quality[None], (view.target,), tokens).index[0]


def halfway(patches: int, target: int) -> int:
    """What is left of ``patches`` when half of those that have to go are gone."""
    return target + (patches - target) // 2


def novelty(features: Tensor, protection: Tensor, centre: bool) -> Tensor:
    """What a patch adds to every fourth one, for a cut of up to half of all; ``[B, N]``.

    Every fourth patch stays (infinity). Another scores ``(1 - its largest cosine to one of these)`` times its
    protection: what goes is like something that stays, or matters little.

    Args:
        features: ``[B, N, width]``.
        protection: ``[B, N]``, positive.
        centre: whether features are compared without their mean.
    """
    normed = unit(determinant.centred(features) if centre else features)
    anchors = normed[:, ::ANCHORS]
    scores = (1.0 - torch.matmul(normed, anchors.mT).amax(dim=2)).clamp(min=0.0) * protection
    scores[:, ::ANCHORS] = float("inf")
    return scores


def question_relevance(features: Tensor, text: Tensor) -> Tensor:
    """Mean cosine of every token ``[N, width]`` to the text ``[M, width]``, scaled to (0, 1], as CDPruner's."""
    relevance = (unit(features) @ unit(text).T).mean(dim=1)
    least, most = relevance.min(), relevance.max()
    return (relevance - least + 1e-6) / (most - least).clamp(min=1e-6)


def chosen(
    method: FlowCutPlus,
    states: Tensor,
    quality: Tensor,
    targets: tuple[int, ...],
    counts: tuple[int, ...],
    first: Tensor | None = None,
) -> Selection:
    """Step 3 for rows that do not compete.

    Args:
        states: ``[B, N, width]``.
        quality: ``[B, N]``, the flow to its power, times that of the relevance.
        targets: how many of each row stay.
        counts: how many of each row are real.
        first: see :func:`~flowcut.algorithm.determinant.largest_determinant`.
    """
    whole = [target == count for target, count in zip(targets, counts, strict=True)]
    valid = None if min(counts) == states.shape[1] else counts_mask(counts, states.shape[1], states.device)
    if method.diversity == "none":
        ranked = quality if first is None else quality.scatter(1, first, float("inf"))
        return Selection(top_in_order(ranked, targets, valid), targets)
    features = determinant.centred(states, valid) if method.centre else states.float()
    # A row that keeps everything takes no steps.
    steps = tuple(0 if all_stay else target for target, all_stay in zip(targets, whole, strict=True))
    index = determinant.largest_determinant(features, quality, steps, valid, first)
    if any(whole):
        every = torch.arange(max(targets), device=index.device)
        index = torch.nn.functional.pad(index, (0, max(targets) - index.shape[1]))
        lengths = torch.tensor(targets, device=index.device)[:, None]
        everything = every.masked_fill(every >= lengths, 0)
        index = torch.where(torch.tensor(whole, device=index.device)[:, None], everything, index)
    return Selection(index, targets)


def competing(
    method: FlowCutPlus, states: Tensor, quality: Tensor, targets: tuple[int, ...], counts: tuple[int, ...]
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
        first=(starts + best)[None],
    ).index[0]
    kept = places[index]
    lengths: list[int] = torch.bincount(kept // width, minlength=frames).tolist()
    return list(torch.split(kept % width, lengths))
