"""FlowCut+: flow says what matters, coverage says what is already said. Ours; see docs/flowcut-plus.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..algorithm import flow
from ..algorithm.compiling import run
from ..algorithm.selection import gather_tokens, top_in_order
from .base import Method, Positions
from .flowcut import FlowCutDecoderPolicy
from .flowcut_plus_choice import chosen, comparable, competing, halfway, merged_into, novelty, question_relevance
from .policies import DecoderPolicy, ProjectorPolicy, VisionPolicy
from .saliency import check_finite
from .views import LayerView, Merge, OutputView, ProjectedView, Selection, TowerPass

ALLOWED = {
    "criteria": ("relation", "all"),
    "diversity": ("coverage", "determinant", "none"),
    "early": ("merged", "repeated", "flow", "none"),
    "relevance": ("none", "text"),
}
"""Values of the fields that are words."""


@dataclass(frozen=True)
class FlowCutPlus(Method):
    """Half of what has to go is merged in the middle of the tower; the rest is chosen for flow and coverage together.

    1. Information flow (the global token's attention, FlowCut's "relation") is gathered over the layers.
    2. In the middle of the tower half of the patches that have to go are cut, so that it costs no more than FlowCut.
       Each of them is averaged into the patch that stays and is most like it, which then counts in attention for as
       many patches as it stands for.
    3. Behind the last layer that is read, the patches are taken one by one that add most coverage times flow to a small
       power. A set covers a patch by its largest cosine to one of the set. So a patch counts for its flow, and for what
       it says of the picture that no patch taken before has said.

    With ``relevance="text"`` step 3 follows the projector and reads the prompt. What CDPruner takes for a token's
    relevance to the question, of its projected features, multiplies the flow of what covers, and squared the weight of
    what is to be covered; likeness is still that of the tower's features. Then the choice cannot be cached.

    Tiles of one image share its budget equally; the frames of a video compete for theirs.

    Attributes:
        history: weight of the past in the gathered flow; 0 takes each layer's own.
        criteria: ``"relation"``, or ``"all"``: with semantic relevance and density, as FlowCut.
        quality: exponent of the flow in step 3; 0 chooses for difference alone.
        diversity: ``"coverage"``; ``"determinant"``: the patches that raise the determinant of
            ``q_i cos(x_i, x_j) q_j`` most; or ``"none"``: the best by flow (step 3 of FlowCut itself).
        centre: whether the mean over the image's patches is subtracted from features before they are compared.
        early: which patches step 2 cuts. ``"merged"`` and ``"repeated"``: every fourth patch stays, and of the others
            those go that are most like one of these; ``"merged"`` averages them into what stays (which needs ``sdpa``
            or ``eager`` attention in the tower), ``"repeated"`` drops them. ``"flow"`` drops those of least flow;
            ``"none"`` cuts nothing there.
        early_quality: exponent of the flow in step 2: how much it protects a patch that is like another.
        relevance_power: exponent of the relevance in the quality of a token; where coverage chooses, what is to be
            covered weighs its square.
        relevance: ``"none"``, or ``"text"``: the question decides with.
        decoder_layer: a decoder layer behind which FlowCut's second cut follows, where the paper has one (LLaVA-NeXT,
            Qwen2-VL): twice the budget then enters the language model. ``None``: the tower cuts to the budget itself.
    """

    name: ClassVar[str] = "flowcut_plus"
    summary: ClassVar[str] = "information flow times coverage; what repeats is merged in the tower"
    stage: ClassVar[str] = "tower, or tower and behind the projector"
    ranks_pooled: ClassVar[bool] = True

    positions: Positions = "original"
    history: float = 0.5
    criteria: Literal["relation", "all"] = "relation"
    quality: float = 0.5
    diversity: Literal["coverage", "determinant", "none"] = "coverage"
    centre: bool = False
    early: Literal["merged", "repeated", "flow", "none"] = "merged"
    early_quality: float = 0.5
    relevance: Literal["none", "text"] = "none"
    relevance_power: float = 1.0
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
        # What is merged still passes the layer's MLP, so it goes one layer before what is dropped.
        middle = tower.last_layer // 2
        self.early_layer = max(middle - 1, 0) if method.early == "merged" else middle
        self.counts: tuple[int, ...] = (tower.patches,) * len(tower.targets)
        self.flow: Tensor | None = None
        self._glimpses: list[flow.Glimpse] = []
        self.prefix, self.group = 0, 1
        self.valid: Tensor | None = None
        self.key: Tensor | None = None
        self.size: Tensor | None = None
        self.states: Tensor | None = None
        self._bias: Tensor | None = None

    def observe(self, view: LayerView) -> None:
        everything = self.method.criteria == "all"
        self._glimpses.append(view.glimpse(semantic_scale=1.0 if everything else None, with_density=everything))
        self.prefix, self.valid, self.group = view.prefix, view.valid, view.group
        if view.layer == self.early_layer:
            self.key = view.key[:, :, view.prefix :].transpose(1, 2).flatten(2)

    def _gathered(self) -> Tensor:
        """The flow of every patch, over all layers seen so far."""
        if self._glimpses:
            scores, _ = flow.compare(self._glimpses, self.prefix, self.valid)
            scores = flow.group_means(scores, self.group)
            self.flow = run(flow.accumulated, self.flow, scores, self.method.history)
            self._glimpses.clear()
        assert self.flow is not None
        return self.flow

    def bias(self, layer: int) -> Tensor | None:
        return self._bias

    def select(self, layer: int) -> Selection | None:
        if self.method.early == "merged":
            return None
        return self._early(layer)

    def reduce(self, view: OutputView) -> Selection | Merge | None:
        if view.layer != self.tower.last_layer:
            return self._early(view.layer) if self.method.early == "merged" else None
        strength = self._gathered()
        check_finite(view.layer, strength, view.states)
        self.states = view.states
        targets = self.tower.targets
        if targets == self.counts:
            return None
        selection = self._choose(view.states, strength, targets, self.counts, self.size)
        if self.method.cuts_projected:
            self.flow, self.states = (gather_tokens(kept, selection.index) for kept in (strength, view.states))
        return selection

    def _early(self, layer: int) -> Selection | Merge | None:
        """The cut in the middle."""
        if layer != self.early_layer or layer == self.tower.last_layer or self.method.early == "none":
            return None
        key, self.key = self.key, None
        assert key is not None
        targets = self.tower.targets
        if not self.method.cuts_projected:
            targets = tuple(halfway(self.tower.patches, target) for target in targets)
        if targets == self.counts:
            return None
        strength = self._gathered()
        if self.method.early == "flow":
            index = top_in_order(strength, targets)
        else:
            normed = comparable(key.reshape(*strength.shape, -1), self.method.centre)
            index = top_in_order(novelty(normed, strength, self.method.early_quality), targets)
        self.flow = gather_tokens(strength, index)
        self.counts = targets
        if self.method.early != "merged":
            return Selection(index, targets)
        weights, self.size, self._bias = merged_into(normed, index, targets)
        return Merge(index, targets, weights)

    def handed_on(self) -> Tensor | None:
        if not self.method.cuts_projected or self.flow is None or self.states is None:
            return None
        size = torch.ones_like(self.flow) if self.size is None else self.size
        return torch.cat([self.flow[..., None], size[..., None], self.states.float()], dim=2)

    def choose_pooled(self, weights: Tensor, targets: tuple[int, ...]) -> Selection:
        assert self.states is not None
        states = torch.matmul(weights.to(self.states.dtype), self.states)
        counts = (states.shape[1],) * len(states)
        return self._choose(states, self.rank() @ weights.mT.float(), targets, counts, None)

    def rank(self) -> Tensor:
        return self._gathered()

    def _choose(
        self, states: Tensor, strength: Tensor, targets: tuple[int, ...], counts: tuple[int, ...], size: Tensor | None
    ) -> Selection:
        """The patches that stay, of rows with ``counts`` real ones; the frames of a video compete for its budget."""
        quality = strength**self.method.quality
        if not self.tower.frames:
            return chosen(self.method, states, quality, targets, counts, size)
        rows: list[Tensor] = []
        first = 0
        for frames in self.tower.frames:
            own = slice(first, first + frames)
            sizes = None if size is None else size[own]
            rows += competing(self.method, states[own], quality[own], targets[own], counts[own], sizes)
            first += frames
        kept = tuple(len(row) for row in rows)
        return Selection(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), kept)


class RelevantPolicy(ProjectorPolicy):
    """The choice that reads the question, on one image's projected features and what the tower handed on of them."""

    def __init__(self, method: FlowCutPlus) -> None:
        self.method = method

    def select(self, view: ProjectedView) -> Tensor:
        # Without word from the tower (pooled frames), the projected features take the place of its own.
        states = view.features
        quality = size = torch.ones(len(states), device=states.device)
        if view.handed_on is not None:
            states, size = view.handed_on[:, 2:], view.handed_on[:, 1]
            quality = view.handed_on[:, 0] ** self.method.quality
        if len(view.text):
            relevance = question_relevance(view.features, view.text) ** self.method.relevance_power
            quality, size = quality * relevance, size * relevance.square()
        tokens = (len(view.features),)
        return chosen(self.method, states[None], quality[None], (view.target,), tokens, size[None]).index[0]
