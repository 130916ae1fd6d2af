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
