"""The memory of the tower: the same features and traces, without running its first layers again."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_checkpoint
import torch
from torch import Tensor

from flowcut import METHODS, ClsAttention, Method, attach
from flowcut.checkpoints.loading import LoadedModel
from flowcut.tasks.tower_memo import TowerMemo

WATCHING = ("flowcut", "flowcut_plus", "tome", "downsample")


def load(tower: str = "clip") -> LoadedModel:
    return LoadedModel(tiny.tiny_model(tower), tiny_checkpoint.tiny_processor(), torch.device("cpu"), torch.float32)


def counted(loaded: LoadedModel) -> list[int]:
    """Numbers of the vision layers whose attention runs, from now on."""
    model: Any = loaded.model
    ran: list[int] = []
    for number, layer in enumerate(model.model.vision_tower.encoder.layers):
        layer.self_attn.register_forward_hook(lambda *arguments, number=number: ran.append(number))
    return ran


def encoded(loaded: LoadedModel, method: Method | None, pixels: Tensor) -> tuple[Tensor, list[int]]:
    """Features of one picture, and the patches that stayed."""
    model: Any = loaded.model
    with torch.inference_mode():
        if method is None:
            return model.get_image_features(pixel_values=pixels).pooler_output[0], []
        with attach(loaded.model, method) as handle:
            features = model.get_image_features(pixel_values=pixels).pooler_output[0]
            prompt = torch.tensor([[1, *[tiny.IMAGE_TOKEN] * tiny.PATCHES, 5]])
            model(input_ids=prompt, pixel_values=pixels)
            return features, handle.trace.images[0].kept.tolist()


def made(name: str | None) -> Method | None:
    layers = {"pyramiddrop": {"layers": (1,)}, "fastv": {"layers": 1}}
    return None if name is None else METHODS[name](target_num=9, **layers.get(name, {}))


@pytest.mark.parametrize("name", [None, *(name for name in METHODS if name != "sparsevlm")])
@pytest.mark.parametrize("tower", ["clip", "dinov2"])
def test_features_and_choices_are_the_same(tower: str, name: str | None) -> None:
    loaded, method = load(tower), made(name)
    pixels = torch.rand(2, 1, 3, tiny_checkpoint.SIZE, tiny_checkpoint.SIZE)
    expected = [encoded(loaded, method, own) for own in pixels]
    with TowerMemo(loaded) as memo:
        for _ in range(2):
            for number, own in enumerate(pixels):
                with memo.showing(number, method):
                    features, kept = encoded(loaded, method, own)
                assert kept == expected[number][1]
                torch.testing.assert_close(features, expected[number][0], rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_what_watches_only_the_last_layer_skips_the_others(name: str) -> None:
    loaded, method = load(), METHODS[name](target_num=9)
    assert method.watches_tower == (name in WATCHING)
    pixels = torch.rand(1, 3, tiny_checkpoint.SIZE, tiny_checkpoint.SIZE)
    with TowerMemo(loaded) as memo:
        with memo.showing(0, None):
            encoded(loaded, None, pixels)
        if method.decoder_layers(False):
            method = METHODS["divprune"](target_num=9)
        ran = counted(loaded)
        with memo.showing(0, method):
            encoded(loaded, method, pixels)
    assert sorted(set(ran)) == (list(range(7)) if name in WATCHING else [6])


def test_a_control_that_ranks_by_an_early_layer_runs_whole() -> None:
    assert ClsAttention(target_num=9, layer=2).watches_tower and not ClsAttention(target_num=9).watches_tower


def test_nothing_is_kept_beyond_the_limit_nor_outside_and_layers_get_their_forward_back() -> None:
    loaded = load()
    layers = loaded.model.model.vision_tower.encoder.layers
    pixels = torch.rand(1, 3, tiny_checkpoint.SIZE, tiny_checkpoint.SIZE)
    with TowerMemo(loaded, limit=1) as memo:
        assert all("forward" in vars(layer) for layer in layers[:6])
        ran = counted(loaded)
        for _ in range(2):
            with memo.showing(0, None):
                encoded(loaded, None, pixels)
        assert ran.count(0) == 2
    with TowerMemo(loaded) as memo:
        ran.clear()
        for _ in range(2):
            encoded(loaded, None, pixels)
        assert ran.count(0) == 2
    assert not any("forward" in vars(layer) for layer in layers)
