"""What a method is: it says what it wants at which stage; the stages do the cutting.

A method is a small frozen dataclass whose fields are its paper's hyper-parameters. For every pass it makes a policy
for each stage at which it acts: in the vision tower, behind the projector, inside the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .policies import DecoderPolicy, ProjectorPolicy, VisionPolicy
from .views import TowerPass

Positions = Literal["compact", "original"]
Outputs = Literal["columns", "kept"]


def check_budget(target_num: object, retain_ratio: object) -> None:
    """Validate the two ways of giving a budget.

    Raises:
        ValueError: both or neither given, ``target_num`` not an int of at least 1, ``retain_ratio`` outside (0, 1].
    """
    if (target_num is None) == (retain_ratio is None):
        given = "neither" if target_num is None else f"both ({target_num!r} and {retain_ratio!r})"
        raise ValueError(
            f"Give exactly one of target_num and retain_ratio, not {given}: target_num=64 keeps 64 visual tokens "
            "of every image, retain_ratio=1/3 a third of them."
        )
    if target_num is not None and (not isinstance(target_num, int) or isinstance(target_num, bool) or target_num < 1):
        raise ValueError(f"target_num must be an int of at least 1 (visual tokens per image), got {target_num!r}.")
    if retain_ratio is not None and (
        not isinstance(retain_ratio, (int, float)) or isinstance(retain_ratio, bool) or not 0.0 < retain_ratio <= 1.0
    ):
        raise ValueError(f"retain_ratio must lie in (0, 1], got {retain_ratio!r}; 1/9 keeps one token in nine.")


@dataclass(frozen=True)
class Method:
    """Base of every method.

    Class attributes:
        stage: where it acts, in words.
        paper: where it was published; empty for controls.
        requires_cls: whether it cannot do without a CLS token.
        reads_text: whether the choice depends on the text.
        shrinks_picture: whether it scales pictures down in front of the tower, and does nothing else.
        cuts_tower: whether it cuts inside the vision tower; otherwise all its patches go through the projector.
        cuts_projected: whether it cuts behind the projector.
        ranks_ahead: whether a cut behind a decoder layer is chosen from q, k, v that the *next* layer computes of all
            tokens, instead of that layer's own.
        ranks_pooled: whether its vision policy can rank tokens that are pooled or interpolated from patches behind the
            tower.

    Attributes:
        target_num: the budget: visual tokens of each image, as the method counts them (docs/counting.md says where).
        retain_ratio: the same as a share of the image's visual tokens, in (0, 1]; give one of the two.
        positions: ``"compact"`` renumbers the tokens behind a cut (0 ... n-1), ``"original"`` lets every kept
            token keep the position it had in the uncut sequence, as it always does where positions are places in a
            picture (Qwen2-VL).
        outputs: ``"columns"``: logits and hidden states have an entry for every column of ``input_ids``, that of a cut
            column is the one of the kept column before it, so that code which pairs them with uncut labels is right;
            ``"kept"``: they have entries for the kept columns alone.
        image_newline: LLaVA-NeXT ends every row of patches with a token of its own. Whether the rows that still
            have a patch keep it, on top of the budget; the released code drops them all.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    stage: ClassVar[str]
    paper: ClassVar[str] = ""
    requires_cls: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    shrinks_picture: ClassVar[bool] = False
    cuts_tower: ClassVar[bool] = True
    cuts_projected: ClassVar[bool] = False
    ranks_ahead: ClassVar[bool] = False
    ranks_pooled: ClassVar[bool] = False

    target_num: int | None = None
    retain_ratio: float | None = None
    positions: Positions = "compact"
    image_newline: bool = False
    outputs: Outputs = "columns"

    def __post_init__(self) -> None:
        check_budget(self.target_num, self.retain_ratio)
        if self.positions not in ("compact", "original"):
            raise ValueError(f'positions must be "compact" or "original", got {self.positions!r}.')
        if self.outputs not in ("columns", "kept"):
            raise ValueError(f'outputs must be "columns" or "kept", got {self.outputs!r}.')

    @property
    def watches_tower(self) -> bool:
        """Whether its work in the tower depends on more than the last layer that the model reads."""
        return self.cuts_tower

    def tokens_to_keep(self, available: int) -> int:
        """How many of an image's ``available`` visual tokens stay; at most ``available``, at least 1."""
        if self.target_num is not None:
            return min(self.target_num, available)
        assert self.retain_ratio is not None
        return max(1, min(available, round(self.retain_ratio * available)))

    def decoder_layers(self, second_cut: bool) -> tuple[int, ...]:
        """The decoder layers after which the method cuts, ascending; none by default.

        Args:
            second_cut: whether the model's family is one where FlowCut's paper cuts a second time.
        """
        return ()

    def decoder_policy(self) -> DecoderPolicy:
        """The policy for one pass through the language model, where :meth:`decoder_layers` names any."""
        raise TypeError(f"{type(self).__name__} names decoder layers but has no decoder_policy.")

    def tile_targets(self, tokens: int, tiles: int, patches: int, second_cut: bool) -> tuple[int, ...]:
        """How many patches of each tile of an image leave the tower; by default the budget in equal shares.

        Args:
            tokens: the image's budget, its prefix tokens taken off.
            tiles: tiles of the image.
            patches: patches of one tile.
            second_cut: see :meth:`decoder_layers`.
        """
        share, rest = divmod(tokens, tiles)
        return tuple(min(patches, max(1, share + (tile < rest))) for tile in range(tiles))

    def packed_target(self, tokens: int, available: int, second_cut: bool) -> int:
        """How many visual tokens of an image leave a tower that packs images of any size, such as Qwen2-VL's.

        Args:
            tokens: the image's budget.
            available: its visual tokens, uncut.
            second_cut: see :meth:`decoder_layers`.
        """
        return min(tokens, available)

    def counts_padding(self) -> bool:
        """Whether patches in the padding of a picture's tiles compete with the others and are dropped afterwards."""
        return False

    def cuts_groups(self) -> bool:
        """Whether a tower that merges patches into visual tokens is cut by whole groups, or patch by patch."""
        return True

    def vision_policy(self, tower: TowerPass) -> VisionPolicy:
        """The policy for one pass; called only where there is something to cut in the tower."""
        raise TypeError(f"{type(self).__name__} says that it cuts inside the vision tower but has no vision_policy.")

    def projector_policy(self) -> ProjectorPolicy:
        """The policy behind the projector, where :attr:`cuts_projected`."""
        raise TypeError(f"{type(self).__name__} says that it cuts behind the projector but has no projector_policy.")
