"""The dense alignment loss: every projected patch says, in word embeddings, what the renderer put there."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from .scene import GRID, Scene
from .vocabulary import COLORS, SHAPES, nouns
from .workspace import Workspace

CONTENTS = (*(noun.name for noun in nouns()), *SHAPES, "word", "background")
"""What a patch can show."""

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")
SIZES = ("tiny", "small", "medium", "large", "huge")
"""How much of the picture an item fills: up to 8 patches, 16, 32, 64, or more.

Summed over an item's patches, attention that falls with this word is the same for large and small items, so that
they can be counted.
"""

NUMBERS = ("one", "two", "three", "four", "five", "six")
"""How many things of its noun the picture shows, said by every patch of each of them."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "content": CONTENTS,
    "row": ROWS,
    "column": COLUMNS,
    "color": tuple(COLORS),
    "size": SIZES,
    "count": NUMBERS,
}
ASPECTS = tuple(_CHOICES)
"""What a patch is asked to say, in the order of the columns of `targets`."""

UNKNOWN = -100
"""The target of an aspect that a patch doesn't have."""

COUNT_WEIGHT = 4.0
"""Weight of the numbers in the loss; every other aspect has 1. They are the hardest to find out."""

_SHARPNESS = 24.0
_LENGTH = 2.5


def targets(scene: Scene) -> Tensor:
    """[576, 6] int64: every patch's word for each of `ASPECTS`, by index; `UNKNOWN` where it has none.

    Patches of an item tell the ninth of the picture in which that item is centred; background patches tell
    their own.
    """
    rows = torch.arange(GRID).div(GRID // 3, rounding_mode="floor")
    answer = torch.full((GRID, GRID, len(ASPECTS)), UNKNOWN)
    answer[..., 0] = CONTENTS.index("background")
    answer[..., 1] = rows[:, None]
    answer[..., 2] = rows[None, :]
    owner = torch.from_numpy(scene.owner.astype("int64"))
    counts = Counter(item.name for index, item in enumerate(scene.items) if scene.touched[index].any())
    for index, item in enumerate(scene.items):
        mine = owner == index
        content = "word" if item.kind == "word" else item.name
        answer[..., 0][mine] = CONTENTS.index(content)
        answer[..., 1][mine], answer[..., 2][mine] = item.cell
        answer[..., 4][mine] = min(max(0, math.ceil(math.log2(max(1, mine.sum()) / 8))), len(SIZES) - 1)
        if item.kind == "noun" and counts[item.name] in range(1, len(NUMBERS) + 1):
            answer[..., 5][mine] = counts[item.name] - 1
        if item.kind == "shape":
            answer[..., 3][mine] = tuple(COLORS).index(item.color)
    return answer.reshape(GRID * GRID, len(ASPECTS))


def anchors(scene: Scene) -> Tensor:
    """[576] float: 1 at the one patch of every item that lies nearest to the middle of its patches, else 0."""
    chosen = torch.zeros(GRID * GRID)
    owner = torch.from_numpy(scene.owner.astype("int64")).reshape(-1)
    for index in range(len(scene.items)):
        mine = torch.where(owner == index)[0]
        if len(mine):
            places = torch.stack([mine // GRID, mine % GRID], dim=1).float()
            chosen[mine[(places - places.mean(dim=0)).square().sum(dim=1).argmin()]] = 1.0
    return chosen


def halve_targets(full: Tensor) -> Tensor:
    """[144, 6] targets for 2 x 2 averages: a value where at least three of the four patches agree."""
    grid = full.reshape(GRID // 2, 2, GRID // 2, 2, -1).permute(0, 2, 1, 3, 4).reshape(-1, 4, full.shape[-1])
    most = grid.mode(dim=1).values
    agree = (grid == most[:, None]).sum(dim=1) >= 3
    return torch.where(agree, most, UNKNOWN)


class DenseAlignment(nn.Module):
    """Scores projected patches against the language model's own word embeddings.

    Args:
        embeddings: [vocabulary, width] input embeddings of the language model.
        tokenizer: its tokenizer; a word of several tokens stands for the mean of their embeddings.
    """

    center: Tensor

    def __init__(self, embeddings: Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        table = embeddings.detach().float()
        self.register_buffer("center", table.mean(dim=0))
        for aspect, words in _CHOICES.items():
            rows = [table[tokenizer(f" {word}").input_ids].mean(dim=0) - self.center for word in words]
            self.register_buffer(f"words_{aspect}", normalize(torch.stack(rows), dim=-1))

    def logits(self, projected: Tensor, aspect: str) -> Tensor:
        """[n, choices] for [n, width] projected patches and one of `ASPECTS`."""
        words: Tensor = getattr(self, f"words_{aspect}")
        return _SHARPNESS * normalize(projected - self.center, dim=-1) @ words.T

    def stretch(self, second: nn.Linear, projected: Tensor) -> None:
        """Scale the projector's last layer so that patches lie as far from the mean word as words do.

        The strong weight decay leaves them short; how they are named does not change.

        Args:
            second: the projector's last layer, changed in place.
            projected: [n, width] a sample of what it gives.
        """
        with torch.no_grad():
            factor = _LENGTH / (projected - self.center).norm(dim=-1).mean()
            second.weight.mul_(factor)
            second.bias.sub_(self.center).mul_(factor).add_(self.center)

    def forward(self, projected: Tensor, wanted: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, and for each aspect the share of patches that name it rightly.

        Args:
            projected: [n, width] float32.
            wanted: [n, 6] as from `targets`.
        """
        length = (projected - self.center).norm(dim=-1)
        loss = 0.1 * (length - _LENGTH).square().mean()
        right: dict[str, float] = {}
        for column, aspect in enumerate(ASPECTS):
            known = wanted[:, column] != UNKNOWN
            if known.any():
                logits = self.logits(projected[known], aspect)
                weight = COUNT_WEIGHT if aspect == "count" else 1.0
                loss = loss + weight * cross_entropy(logits, wanted[known, column])
                right[aspect] = (logits.argmax(dim=-1) == wanted[known, column]).float().mean().item()
        return loss, right


def load_alignment(workspace: Workspace, dtype: torch.dtype = torch.float32) -> DenseAlignment:
    """The loss with the word embeddings of the workspace's language model, read in a precision."""
    language = AutoModelForCausalLM.from_pretrained(workspace.language, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(workspace.language)
    return DenseAlignment(language.get_input_embeddings().weight, tokenizer)
