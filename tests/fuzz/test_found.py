"""What the fuzzer found, each by itself."""

from __future__ import annotations

import pytest
import torch
import zoo

from flowcut import ToMe, attach


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_tokens_weighed_by_their_size_in_a_ragged_batch_of_any_format(dtype: torch.dtype) -> None:
    """The lowest number of float64 was written into the bias while that was float32: an overflow."""
    case = zoo.video_llava()
    model = case.model.to(dtype)
    inputs = case.together(case.samples)
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with attach(model, ToMe(retain_ratio=0.5)) as handle:
        assert bool(model(**given).logits.isfinite().all())
        assert len({tuple(tile.tokens_after_layer) for image in handle.trace.images for tile in image.tiles}) > 1


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@torch.no_grad()
def test_tome_keeps_its_order_where_another_picture_of_the_batch_is_merged(name: str) -> None:
    """A layer that merged nothing of one picture, but something of another, reordered the first one's patches."""
    case = zoo.case(name)
    with attach(case.model, ToMe(retain_ratio=0.87)) as handle:
        case.model(**case.together(case.samples))
        together = sorted(image.kept.tolist() for image in handle.trace.images)
        alone = []
        for sample in case.samples:
            case.model(**case.together([sample]))
            alone += [image.kept.tolist() for image in handle.trace.images]
    assert len(alone) > 1 and together == sorted(alone)
