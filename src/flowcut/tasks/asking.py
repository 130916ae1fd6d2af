"""Asking a model all questions about scenes, with a method attached."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ..attaching import attach
from ..checkpoints.loading import LoadedModel
from ..methods import Method, make_method
from ..methods.base import Positions
from .answering import (
    Encoded,
    answer_all,
    answer_encoded,
    encode,
    features_of,
    inputs_on,
    layers_alike,
    may_join,
    may_share,
)
from .oracle import Oracle, asked_patches
from .split import TaskQuestion, TaskScene
from .tower_memo import TowerMemo

MAX_NEW_TOKENS = 8
"""Longest answer; those of the tasks have one to four tokens."""

ORACLE_SEED = 72

UNCUT = "uncut"
ORACLE = Oracle.name


Asked = list[tuple[int, TaskScene, list[TaskQuestion]]]
"""Scenes with their number in the split and the questions that are asked about them."""


@dataclass(frozen=True)
class RowPlan:
    """One row of the table.

    Attributes:
        method: a name in ``METHODS`` or one with settings, such as ``flowcut(history=0.7)``, as
            :class:`~flowcut.methods.naming.MethodExpression` writes it; ``oracle``, or ``uncut``.
        target_num: its budget; ``None`` for ``uncut``.
        positions: see :class:`~flowcut.methods.base.Method`; ``None`` for the method's own default.
    """

    method: str
    target_num: int | None = None
    positions: Positions | None = None

    @property
    def label(self) -> str:
        """Method, budget and positions on one line."""
        return " ".join(str(part) for part in (self.method, self.target_num, self.positions) if part is not None)

    def build(self, patches: tuple[int, ...] = ()) -> Method | None:
        """The method, or ``None`` for ``uncut``; ``patches`` are those that the oracle keeps."""
        if self.method == UNCUT:
            return None
        made: Method = (
            Oracle(target_num=len(patches), patches=patches)
            if self.method == ORACLE
            else make_method(self.method, self.target_num)
        )
        return made if self.positions is None else replace(made, positions=self.positions)


class Memory:
    """What rows have in common, kept from one to the next inside a ``with`` block: it changes no answer.

    Args:
        loaded: the model.

    Attributes:
        tower: what the tower makes of a scene before methods act, by the scene's number.
        prompts: token ids, by the scene's number and the question.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.tower = TowerMemo(loaded)
        self.prompts: dict[tuple[int, str], Tensor] = {}

    def __enter__(self) -> Memory:
        self.tower.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.tower.__exit__(kind, error, traceback)


def packs(asked: Asked, batch_size: int) -> Iterator[Asked]:
    """Scenes in their order, as many at a time as have at most ``batch_size`` questions together; at least one."""
    pack: Asked = []
    for entry in asked:
        if pack and sum(len(questions) for _, _, questions in [*pack, entry]) > batch_size:
            yield pack
            pack = []
        pack.append(entry)
    if pack:
        yield pack


def scene_answers(
    loaded: LoadedModel,
    plan: RowPlan,
    number: int,
    scene: TaskScene,
    questions: Sequence[TaskQuestion],
    batch_size: int,
) -> list[str]:
    """Answers to one scene's questions, in their order."""
    with Memory(loaded) as memory:
        return pack_answers(loaded, plan, [(number, scene, list(questions))], batch_size, memory)


def pack_answers(loaded: LoadedModel, plan: RowPlan, pack: Asked, batch_size: int, memory: Memory) -> list[str]:
    """Answers to the questions about some scenes, in their order.

    Questions about one scene for which the same patches stay share its encoding, and where nothing of it depends on
    the question also its cache.
    """
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    flat = [(place, question) for place, (_, _, questions) in enumerate(pack) for question in questions]
    for index, (place, question) in enumerate(flat):
        number, scene, _ = pack[place]
        groups[place, oracle_patches(plan, number, scene, question)].append(index)
    pictures = [scene.picture() for _, scene, _ in pack]
    join = may_join(loaded)
    said: list[list[str]] = []
    encoded: list[Encoded] = []
    method: Method | None = None
    for (place, patches), members in groups.items():
        number, texts = pack[place][0], [flat[index][1].text for index in members]
        method = plan.build(patches)
        with attached(loaded.model, method), memory.tower.showing(number, method):
            if join:
                encoded.append(encode_scene(loaded, number, pictures[place], texts, memory))
            else:
                said.append(answer_all(loaded, pictures[place], texts, **settings_of(loaded, method, batch_size)))
    if join:
        with attached(loaded.model, method):
            settings = settings_of(loaded, method, batch_size)
            said = answer_encoded(loaded, encoded, alike=layers_alike(loaded, method), **settings)
    answers = [""] * len(flat)
    for members, group in zip(groups.values(), said, strict=True):
        for index, answer in zip(members, group, strict=True):
            answers[index] = answer
    return answers


def settings_of(loaded: LoadedModel, method: Method | None, batch_size: int) -> dict[str, Any]:
    """How questions are asked with a method."""
    share = may_share(loaded, method)
    return {"batch_size": batch_size, "max_new_tokens": MAX_NEW_TOKENS, "share_prefix": share}


def attached(model: nn.Module, method: Method | None) -> AbstractContextManager[Any]:
    """The method on the model while a block runs, or nothing."""
    return nullcontext() if method is None else attach(model, method)


def encode_scene(
    loaded: LoadedModel, number: int, picture: Image.Image, texts: Sequence[str], memory: Memory
) -> Encoded:
    """A scene through the tower; prompts that were written before are not written again."""
    known = [memory.prompts.get((number, text)) for text in texts]
    prompts = tuple(prompt for prompt in known if prompt is not None)
    if len(prompts) == len(texts):
        return Encoded(features_of(loaded, inputs_on(loaded, picture, texts[:1])["pixel_values"]), prompts)
    encoded = encode(loaded, picture, texts)
    memory.prompts.update({(number, text): ids for text, ids in zip(texts, encoded.prompts, strict=True)})
    return encoded


def oracle_patches(plan: RowPlan, number: int, scene: TaskScene, question: TaskQuestion) -> tuple[int, ...]:
    """What the oracle keeps for a question; nothing for other methods.

    Raises:
        ValueError: nobody has marked what the scene's patches show.
    """
    if plan.method != ORACLE:
        return ()
    if not scene.items:
        raise ValueError("the oracle needs a split with masks, such as test-v1; this one has none.")
    assert plan.target_num is not None
    random = np.random.default_rng((ORACLE_SEED, number))
    return asked_patches(scene.touched, question.about, plan.target_num, random)
