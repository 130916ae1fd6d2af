"""Packs all questions about a picture into one sequence in which no question sees another one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flowcut.tasks import TaskQuestion as Question

from .guidance import asked_for

BEFORE = (
    "",
    "",
    "",
    "Here is a picture.\n",
    "Look at this picture carefully, then answer the question below it.\n",
    "The following picture was taken a while ago. It shows one thing or several things.\n",
)
"""Text that may stand between the user's turn and the picture; nothing half of the time."""

AFTER = (
    "",
    "",
    "",
    "",
    "Answer with one word.\n",
    "Please answer the question about the picture above as briefly as you can.\n",
)
"""Text that may stand between the picture and the question."""


@dataclass(frozen=True)
class Packed:
    """One picture's dialogue, ready for the language model except for the visual embeddings.

    Attributes:
        ids: [length] token ids; the `visual` columns hold 0 and are to be replaced by projected patches.
        visual: where the picture's tokens lie.
        positions: [length] position ids; every question starts where the shared part ended.
        branch: [length] 0 for the part all questions share, else the question's number from 1.
        labels: [length] the token to predict *at* each place, -100 where none is.
        questions: the questions in the order of their branches.
        looks: [questions, 2] the places of the word each asks for and of the token before its answer.
    """

    ids: Tensor
    visual: slice
    positions: Tensor
    branch: Tensor
    labels: Tensor
    questions: tuple[Question, ...]
    looks: Tensor

    def mask(self, dtype: torch.dtype) -> Tensor:
        """[1, 1, length, length] additive mask: causal, and blind to other questions."""
        order = torch.arange(len(self.ids))
        seen = order[:, None] >= order[None, :]
        seen &= (self.branch[None, :] == 0) | (self.branch[:, None] == self.branch[None, :])
        mask = torch.zeros(len(self.ids), len(self.ids), dtype=dtype)
        return mask.masked_fill(~seen, torch.finfo(dtype).min)[None, None]


class Packer:
    """Turns questions into token sequences under the model's chat format.

    Args:
        tokenizer: the language model's tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _opening(self) -> list[int]:
        return self._ids("<|im_start|>user\n")

    @cached_property
    def _turn(self) -> list[int]:
        return self._ids("<|im_end|>\n<|im_start|>assistant\n")

    @cached_property
    def _end(self) -> list[int]:
        return self._ids("<|im_end|>")

    def pack(
        self,
        questions: list[Question],
        visual_positions: Tensor,
        random: np.random.Generator | None = None,
    ) -> Packed:
        """Build the sequence: opening, picture, then one branch for each question.

        Args:
            questions: all about the same picture.
            visual_positions: [n] the picture's position ids, from 0; the last place of the picture is taken
                as the larger of n and these.
            random: draws the text before and after the picture; None for none.
        """
        before = BEFORE[int(random.integers(len(BEFORE)))] if random is not None else ""
        after = AFTER[int(random.integers(len(AFTER)))] if random is not None else ""
        opening = self._opening + (self._ids(before) if before else [])
        closing = self._ids("\n" + after) if after else self._ids("\n")
        count = len(visual_positions)
        end = len(opening) + max(count, int(visual_positions.max()) + 1 if count else 0)
        ids = opening + [0] * count + closing
        positions = [
            *range(len(opening)),
            *(visual_positions + len(opening)).tolist(),
            *range(end, end + len(closing)),
        ]
        branch, labels = [0] * len(ids), [-100] * len(ids)
        looks = []
        for number, question in enumerate(questions, start=1):
            asked = self._ids(question.text) + self._turn
            looks.append([len(ids) + len(self._ids(asked_for(question.text))) - 1, len(ids) + len(asked) - 1])
            answer = self._ids(" " + question.answer) + self._end
            new = asked + answer[:-1]
            ids += new
            positions += range(end + len(closing), end + len(closing) + len(new))
            branch += [number] * len(new)
            labels += [-100] * (len(asked) - 1) + answer
        return Packed(
            torch.tensor(ids),
            slice(len(opening), len(opening) + count),
            torch.tensor(positions),
            torch.tensor(branch),
            torch.tensor(labels),
            tuple(questions),
            torch.tensor(looks),
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids


def halved_positions(grid: int) -> Tensor:
    """Position ids of 2 x 2 averages: those of their upper left patches among all patches, row by row."""
    rows = torch.arange(0, grid, 2)
    return (rows[:, None] * grid + rows[None, :]).reshape(-1)
