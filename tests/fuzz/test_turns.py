"""Conversations of several samples: padding between turns, pictures in later turns, another method in between.

Every logit is that of the uncut model over the columns that all turns kept (``fuzz_turns.py``).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fuzz_talk import Talk
from fuzz_turns import Turn
from fuzz_worlds import World, world
from transformers import DynamicCache

from flowcut import DivPrune, FastV, FlowCut, FlowCutError, Method, PyramidDrop, attach
from flowcut.methods.fastv import FastVPolicy

NAME = "llava, clip"
BUDGET = 9
METHODS: dict[str, Method] = {
    "tower": FlowCut(target_num=BUDGET),
    "tower, original positions": FlowCut(target_num=BUDGET, positions="original"),
    "projector": DivPrune(target_num=BUDGET),
    "decoder": FastV(target_num=BUDGET, layers=1),
    "decoder, compact positions": FastV(target_num=BUDGET, layers=1, positions="compact"),
    "decoder, twice": PyramidDrop(target_num=BUDGET, layers=(1, 2)),
}
PICTURE, OTHER, TEXT = 0, 1, 4
"""Samples of the world: one picture, two pictures, none."""


class Speaking:
    """A conversation with a model of a world."""

    def __init__(self, rows: list[int], name: str = NAME) -> None:
        self.world: World = world(name)
        self.model: Any = self.world.model
        self.talk = Talk(self.batch(rows), DynamicCache(config=self.model.config.get_text_config()))
        self.rows = rows

    def batch(self, rows: list[int], noise: int = 0) -> dict[str, torch.Tensor]:
        """A batch of samples."""
        return self.world.batch(rows, "left", noise, "float32")

    def turn(self, method: Method, more: dict[str, torch.Tensor], steps: int) -> None:
        """A turn under a method, by ``generate()``, or by a forward pass (``steps`` 0)."""

        def make(inputs: Any, counted: bool, trace: Any, encoded: Any) -> Turn:
            return Turn(inputs, method, counted, encoded, trace)

        with attach(self.model, method) as handle:
            given = (self.model, self.world.untouched(), make, handle)
            if steps:
                self.talk.speak(*given, steps, "float32", more)
            else:
                self.talk.listen(*given, "float32", more)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("steps", [3, 0])
def test_padding_between_turns_is_no_token(kind: str, steps: int) -> None:
    speaking, method = Speaking([PICTURE, OTHER]), METHODS[kind]
    speaking.turn(method, speaking.batch([PICTURE, OTHER]), 2)
    for number in range(2):
        speaking.turn(method, speaking.talk.text(5, 2, number, typed=False), steps)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("steps", [2, 0])
def test_a_later_turn_brings_pictures_to_some_samples(kind: str, steps: int) -> None:
    for first in ([PICTURE, TEXT], [TEXT, TEXT], [OTHER]):
        speaking, method = Speaking(first), METHODS[kind]
        speaking.turn(method, speaking.batch(first), 2)
        for rows in ([OTHER, PICTURE], [TEXT, OTHER]):
            speaking.turn(method, speaking.batch(rows[: len(first)], 3), steps)
        speaking.turn(method, speaking.talk.text(3, 1, 5, typed=False), 2)


def test_a_later_picture_is_ranked_by_its_own_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    speaking, method = Speaking([PICTURE]), METHODS["decoder"]
    computed: list[torch.Tensor] = []
    shown: list[torch.Tensor] = []
    select = FastVPolicy.select

    def watched(policy: FastVPolicy, view: Any) -> torch.Tensor:
        shown.append(view.value)
        return select(policy, view)

    monkeypatch.setattr(FastVPolicy, "select", watched)
    attention = speaking.model.model.language_model.layers[0].self_attn
    hook = attention.v_proj.register_forward_hook(lambda module, args, output: computed.append(output))
    try:
        speaking.turn(method, speaking.batch([PICTURE]), 1)
        speaking.turn(method, speaking.batch([OTHER], 3), 1)
    finally:
        hook.remove()
    assert len(shown) == len(computed) == 2
    for value, whole in zip(shown, computed, strict=True):
        assert torch.equal(value, whole.unflatten(-1, (value.shape[1], -1)).transpose(1, 2))


@pytest.mark.parametrize("after", METHODS)
@pytest.mark.parametrize("before", METHODS)
def test_another_method_goes_on_or_says_that_it_cannot(before: str, after: str) -> None:
    for show in (False, True):
        speaking = Speaking([PICTURE, OTHER])
        speaking.turn(METHODS[before], speaking.batch([PICTURE, OTHER]), 2)
        more = speaking.batch([OTHER, TEXT], 4) if show else speaking.talk.text(4, 0, 6, typed=False)
        cuts = {name: METHODS[name].decoder_layers(False) for name in (before, after)}
        if cuts[before] and cuts[before] != cuts[after]:
            with pytest.raises(FlowCutError, match="was cut inside the language model, behind"):
                speaking.turn(METHODS[after], more, 2)
        else:
            speaking.turn(METHODS[after], more, 2)
            speaking.turn(METHODS[after], speaking.talk.text(2, 0, 7, typed=False), 0)
