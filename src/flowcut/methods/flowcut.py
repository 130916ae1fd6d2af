"""FlowCut: cut by information flow while the image is being encoded (NeurIPS 2025, arXiv 2505.19536)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..algorithm import flow
from ..algorithm.segments import softmax_within
from .base import Method
from .fixed_schedule import check_schedule
from .flowcut_policy import FlowCutPolicy
from .policies import DecoderPolicy, VisionPolicy
from .ranking import keep_best, logits_of_last, row_of_last
from .views import DecoderView, TowerPass


@dataclass(frozen=True)
class FlowCut(Method):
    """FlowCut's hyper-parameters; the defaults are the paper's.

    Attributes:
        history: weight of the past in the cumulative importance (paper, Table 10: 0.5).
        cut_every: cut every so many layers, counted back from the last cut (paper, Table 11: 2). ``None`` cuts once, at
            the last of these layers (the "single-layer" rows of Table 7).
        adaptive: how many patches a cut takes follows the entropy of the global token's attention; otherwise every
            cut takes an equal share of what has to go (Table 7 without A; the paper does not say how it shares out).
        schedule: how many patches every cut takes. ``"adaptive"`` decides it for every picture, for which the host
            waits at every cut. Fixed beforehand, so that nothing waits and all shapes are known: ``"calibrated"`` by
            the calibration that ships with the model (flowcut-mini); the path of a file by one that ``flowcut
            calibrate`` wrote; whole numbers by these, one for each cut. Which patches go is decided for every picture
            in any case. That scores are finite is then not checked.
        criteria: ``"all"`` scores by relation, semantic relevance and density; ``"relation"`` by the global token's
            attention alone (Table 7 without M). Table 7 without C is ``history=0``.
        scale_semantic: divide ``v_g . v_j`` by sqrt(D), as the paper's pseudocode does; the released LLaVA code
            does not, and neither does the default.
        couple_batch: one cut count for the whole batch, the maximum over its images, as in the released code.
            By default every image follows its own schedule, so a batch gives exactly what single runs give.
        decoder_layer: where the paper cuts a second time (LLaVA-NeXT): after this decoder layer the visual tokens
            are cut to the budget, scored by the last token of the prompt. ``None`` leaves that cut out, and the
            tower then cuts to the budget itself.
        tower_budget: how many patches leave the tower where there is a second cut: ``"released"`` gives every tile
            half the budget (2.5 times the budget over five tiles), ``"paper"`` twice the budget in all, in equal
            shares. Qwen2-VL's tower keeps twice the budget under either name.
        video_budget: how the frames of a video share its budget: ``"equal"`` gives every frame the same share,
            ``"pooled"`` follows the same schedule but lets the last cut rank the patches of all frames together
            (every frame keeps one at least). Qwen2-VL's videos are one unit, always pooled.
        merge_unit: what is cut in towers that merge patches into visual tokens (Qwen2-VL). ``"group"`` cuts whole
            merge groups; a group's score is the mean over its patches, the entropy that of the patches. ``"patch"``
            cuts single patches as the released code does; the merger then joins patches that were not neighbours,
            and its tokens take the places (and so the positions) of the image's first tokens.
        packed_semantic: whether semantic relevance counts in such towers; the released code leaves it out there.
        padding_counts: whether patches in the padding of a picture's tiles (LLaVA-NeXT, LLaVA-OneVision) take a share
            of the budget as in the released code, which drops them afterwards, so that less of the budget is used.
    """

    name: ClassVar[str] = "flowcut"
    summary: ClassVar[str] = "information flow to the global token, cut in every second vision layer"
    stage: ClassVar[str] = "tower, decoder"
    paper: ClassVar[str] = "NeurIPS 2025, arXiv 2505.19536"
    ranks_pooled: ClassVar[bool] = True

    history: float = 0.5
    cut_every: int | None = 2
    adaptive: bool = True
    schedule: str | tuple[int, ...] = "adaptive"
    criteria: Literal["all", "relation"] = "all"
    scale_semantic: bool = False
    couple_batch: bool = False
    decoder_layer: int | None = 1
    tower_budget: Literal["released", "paper"] = "released"
    video_budget: Literal["equal", "pooled"] = "equal"
    merge_unit: Literal["group", "patch"] = "group"
    packed_semantic: bool = True
    padding_counts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.history < 1.0:
            raise ValueError(f"history must lie in [0, 1) (0 looks at the current layer only), got {self.history!r}.")
        every = self.cut_every
        if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise ValueError(
                "cut_every must be an int of at least 1 (layers between cuts), or None for a single cut at the end, "
                f"got {every!r}."
            )
        check_schedule(self.schedule)
        if self.schedule != "adaptive":
            for name, value, needed in (
                ("adaptive", self.adaptive, True),
                ("couple_batch", self.couple_batch, False),
                ("video_budget", self.video_budget, "equal"),
            ):
                if value != needed:
                    raise ValueError(
                        f"schedule={self.schedule!r} fixes beforehand how many patches every cut takes, which {name}="
                        f"{value!r} decides otherwise; leave {name} at {needed!r}, or the schedule at 'adaptive'."
                    )
        if self.criteria not in ("all", "relation"):
            raise ValueError(f'criteria must be "all" or "relation", got {self.criteria!r}.')
        if self.tower_budget not in ("released", "paper"):
            raise ValueError(f'tower_budget must be "released" or "paper", got {self.tower_budget!r}.')
        if self.video_budget not in ("equal", "pooled"):
            raise ValueError(f'video_budget must be "equal" or "pooled", got {self.video_budget!r}.')
        if self.merge_unit not in ("group", "patch"):
            raise ValueError(f'merge_unit must be "group" or "patch", got {self.merge_unit!r}.')

    @classmethod
    def as_released(cls, target_num: int) -> FlowCut:
        """The settings under which the authors' released code is reproduced, number for number.

        Args:
            target_num: visual tokens per image.
        """
        return cls(
            target_num=target_num,
            couple_batch=True,
            scale_semantic=False,
            positions="compact",
            merge_unit="patch",
            packed_semantic=False,
            outputs="kept",
            padding_counts=True,
        )

    def decoder_layers(self, second_cut: bool) -> tuple[int, ...]:
        return (self.decoder_layer,) if second_cut and self.decoder_layer is not None else ()

    def decoder_policy(self) -> DecoderPolicy:
        return FlowCutDecoderPolicy()

    def tile_targets(self, tokens: int, tiles: int, patches: int, second_cut: bool) -> tuple[int, ...]:
        if not self.decoder_layers(second_cut):
            return super().tile_targets(tokens, tiles, patches, second_cut)
        if self.tower_budget == "paper":
            return super().tile_targets(2 * tokens, tiles, patches, second_cut)
        return (min(patches, max(1, tokens // 2)),) * tiles

    def packed_target(self, tokens: int, available: int, second_cut: bool) -> int:
        more = 2 if self.decoder_layers(second_cut) else 1
        return min(more * tokens, available)

    def counts_padding(self) -> bool:
        return self.padding_counts

    def cuts_groups(self) -> bool:
        return self.merge_unit == "group"

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        return FlowCutPolicy(self, tower)


class FlowCutDecoderPolicy(DecoderPolicy):
    """The second cut: every image is cut to its budget, scored by the last token of its sample."""

    def select(self, view: DecoderView) -> Tensor:
        return keep_best(view, self.importance, view.targets)

    @staticmethod
    def importance(view: DecoderView) -> Tensor:
        """``(A + M) * R`` of every column, ``[B, S]``; the softmaxes run over the tokens of its image only.

        Values that several heads share count once: as often as each other, they have the same mean.
        """
        images = len(view.targets)
        relation = softmax_within(logits_of_last(view), view.image, images).mean(dim=1)
        own = flow.row_logits(row_of_last(view, view.value), view.value, view.scaling)
        semantic = softmax_within(own, view.image, images).mean(dim=1)
        return flow.score(relation, semantic, flow.density(view.value, prefix=0))
