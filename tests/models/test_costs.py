"""The four counts, and FLOPs against torch's own counter."""

from __future__ import annotations

import families
import pytest
import tiny
import torch
from renamed import CACHE

from flowcut import FlowCut, attach


@pytest.mark.parametrize("tower", ["clip", "dinov2", "vit"])
def test_flops_against_torch(tower: str) -> None:
    inputs = {**tiny.batch([tiny.prompt(2)]), "pixel_values": tiny.pictures(2)}
    families.check_flops(tiny.tiny_model(tower, attention="eager"), inputs, FlowCut(target_num=9))


@torch.no_grad()
def test_counts_of_a_mixed_batch() -> None:
    model = tiny.tiny_model()
    prompts = [tiny.prompt(1, 5, 1), tiny.prompt(0, 9, 2), tiny.prompt(2, 3, 3)]
    handle = attach(model, FlowCut(target_num=9))
    cache = model(**tiny.batch(prompts), pixel_values=tiny.pictures(3))[CACHE]
    sequence = handle.trace.sequence
    assert sequence is not None
    text = [sum(token != tiny.IMAGE_TOKEN for token in tokens) for tokens in prompts]
    assert sequence.visual_tokens == (9, 0, 18)
    assert sequence.visual_tokens_mean == (9.0, 0.0, 18.0)
    assert sequence.kv_entries == (text[0] + 9, text[1], text[2] + 18)
    assert cache.get_seq_length() == max(sequence.kv_entries)
    assert sequence.uncut_attended.tolist() == [len(tokens) for tokens in prompts]


@torch.no_grad()
def test_an_image_trace_describes_the_way_through_the_tower() -> None:
    model = tiny.tiny_model()
    handle = attach(model, FlowCut(target_num=9))
    model(**tiny.batch([tiny.prompt(1)]), pixel_values=tiny.pictures(1))
    (image,) = handle.trace.images
    assert (image.grid, image.patches, image.placeholders, image.visual_tokens) == ((6, 6), 36, 36, 9)
    assert image.kept.dtype == torch.int64 and image.kept.tolist() == sorted(set(image.kept.tolist()))
    assert len(image.tokens_after_layer) == 8 and image.tiles[0].layers_run == 7
    assert image.tokens_into_layer == [37, *image.tokens_after_layer[:6]]
    previous = set(range(36))
    for layer, kept in image.kept_after_layer.items():
        assert set(kept.tolist()) < previous
        assert image.tokens_after_layer[layer] == len(kept) + 1
        previous = set(kept.tolist())
    assert previous == set(image.kept.tolist())
    assert image.placeholder_kept.nonzero()[:, 0].tolist() == image.kept.tolist()
