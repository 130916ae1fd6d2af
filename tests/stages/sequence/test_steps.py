"""What a step of decoding on a cut cache asks of a device."""

from __future__ import annotations

from typing import Any

import deep
import pytest
import torch
from renamed import CACHE
from transformers import StaticCache

from flowcut import FlowCut, PyramidDrop, attach
from flowcut.measure.kernels import KernelCounter

METHODS = {
    "tower": FlowCut(target_num=deep.TARGET),
    "three cuts inside": PyramidDrop(target_num=deep.TARGET),
}


def steps(images: int) -> list[tuple[int, int]]:
    """Kernels and waits of the last step that ``generate()`` makes, with the dynamic and with a static cache."""
    model, found = deep.model(), []
    given = deep.inputs(images)
    given["attention_mask"][0, 0] = int(images == 1)
    with torch.no_grad():
        for kind in ("dynamic", "static"):
            own = {CACHE: StaticCache(config=model.config.text_config, max_cache_len=1024)} if kind == "static" else {}
            options: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
            answer = model.generate(**given, **own, **options)
            # As generate() hands it on: nothing where there is no padding.
            mask = torch.nn.functional.pad(given["attention_mask"], (0, 2), value=1)
            call: dict[str, Any] = {
                "attention_mask": None if images == 1 else mask,
                "position_ids": torch.full((images, 1), answer.sequences.shape[1] - 1),
                "use_cache": True,
                CACHE: answer[CACHE],
            }
            with KernelCounter() as counter:
                model(**model.prepare_inputs_for_generation(answer.sequences, next_sequence_length=1, **call))
            found.append((counter.kernels, counter.waits))
    return found


@pytest.mark.parametrize("images", [1, 2])
def test_a_step_costs_five_kernels_more_at_most_and_no_wait(images: int) -> None:
    uncut = steps(images)
    for name, method in METHODS.items():
        with attach(deep.model(), method):
            found = steps(images)
        for (kernels, waits), (uncut_kernels, uncut_waits), kind in zip(
            found, uncut, ("dynamic", "static"), strict=True
        ):
            assert waits <= uncut_waits, (name, kind)
            if kind == "dynamic" or "inside" not in name:
                assert kernels <= uncut_kernels + 5, (name, kind)
