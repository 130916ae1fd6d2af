"""The cache among the arguments of a call, under the name of today and under the one that transformers deprecates."""

from __future__ import annotations

from typing import Any

import pytest
import renamed
import tiny
import torch
from transformers import DynamicCache

from flowcut import FlowCut, attach
from flowcut.stages.sequence.cache_argument import CACHE, cache_in, with_current_name

NAMES = sorted({CACHE, "past_key_values"})


def test_the_name_is_that_of_the_models() -> None:
    assert renamed.CACHE == CACHE


def test_reading_and_renaming() -> None:
    cache = DynamicCache()
    assert cache_in({}) is None
    assert cache_in({CACHE: cache}) is cache
    assert cache_in({"past_key_values": cache}) is cache
    assert with_current_name({"use_cache": True}) == {"use_cache": True}
    for name in NAMES:
        call = with_current_name({"use_cache": True, name: cache})
        assert set(call) == {"use_cache", CACHE} and call[CACHE] is cache
        assert with_current_name({name: None}) == {CACHE: None}


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("without_head", [False, True])
@torch.no_grad()
def test_a_sequence_goes_on_under_either_name(name: str, without_head: bool) -> None:
    model: Any = tiny.tiny_model()
    tokens = tiny.prompt(1)
    pixels = tiny.pictures(1)
    attach(model, FlowCut(target_num=9))
    called = model.model if without_head else model
    cache = DynamicCache(config=model.config.text_config)
    expected = called(input_ids=torch.tensor([[*tokens, 5]]), pixel_values=pixels)[0]
    first = called(input_ids=torch.tensor([tokens]), pixel_values=pixels, **{name: cache})[0]
    then = called(input_ids=torch.tensor([[5]]), **{name: cache})[0]
    torch.testing.assert_close(torch.cat([first, then], dim=1), expected, rtol=1e-5, atol=1e-5)
    assert cache.get_seq_length() == len(tokens) - tiny.PATCHES + 9 + 1
