"""Images as rows of a batch, handled as one sequence."""

from __future__ import annotations

import pytest
import torch

from flowcut import UnsupportedModelError
from flowcut.models.padded_rows import read_placed, rows_of_placed, rows_of_shaped
from flowcut.stages.tower.rows import Rows

FILLED = -1


def test_patches_stand_one_behind_the_other_and_go_back_into_their_rows() -> None:
    hidden = torch.arange(1.0, 9.0).reshape(2, 4, 1)
    rows = Rows(torch.tensor([0, 1, 4, 5, 6]), [2, 3], "sdpa")
    joined = rows.joined(hidden, None)
    assert joined.flatten().tolist() == [1, 2, 5, 6, 7]
    assert torch.equal(rows.parted(joined), hidden * torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])[..., None])
    turned = rows.joined(hidden, torch.tensor([1, 0, 4, 3, 2]))
    assert turned.flatten().tolist() == [2, 1, 7, 6, 5]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_patches_see_those_of_their_own_image(implementation: str) -> None:
    rows = Rows(torch.tensor([0, 1, 4, 5, 6]), [2, 3], implementation)
    given = {"position_embeddings": (torch.arange(8.0).reshape(2, 4, 1),) * 2, "position_ids": None}
    changed = rows.arguments(torch.tensor([1, 2, 4]), given, torch.zeros(1, 3, 1))
    assert set(changed) == {"position_embeddings", "attention_mask"}
    assert [part.flatten().tolist() for part in changed["position_embeddings"]] == [[1, 4, 6]] * 2
    mask = changed["attention_mask"][0, 0]
    seen = mask if implementation == "sdpa" else mask == 0
    assert seen.tolist() == [[True, False, False], [False, True, True], [False, True, True]]


def test_one_image_needs_no_mask_and_several_need_an_attention_that_takes_one() -> None:
    one, two = Rows(torch.arange(4), [4], "flash_attention_2"), Rows(torch.arange(4), [2, 2], "flash_attention_2")
    assert one.arguments(torch.arange(4), {}, torch.zeros(1, 4, 1)) == {"attention_mask": None}
    with pytest.raises(UnsupportedModelError, match="'sdpa' or 'eager', not with 'flash_attention_2'"):
        two.arguments(torch.arange(4), {}, torch.zeros(1, 4, 1))


def test_places_of_patches_by_their_shapes_and_by_their_positions() -> None:
    pixels = torch.zeros(2, 4, 3)
    shapes = {"spatial_shapes": torch.tensor([[1, 2], [2, 2]])}
    assert rows_of_shaped((pixels,), shapes).tolist() == [0, 1, 4, 5, 6, 7]
    # (x, y): the second picture is one column of two, its lower patch given first.
    places = torch.tensor([[[0, 0], [1, 0], [0, 1], [1, 1]], [[0, 1], [0, 0], [FILLED, FILLED], [FILLED, FILLED]]])
    given = {"pixel_position_ids": places}
    assert rows_of_placed((pixels,), given).tolist() == [0, 1, 2, 3, 5, 4]
    grids, own = read_placed(None, (pixels,), given)
    assert grids.tolist() == [[1, 2, 2], [1, 2, 1]] and [len(one) for one in own] == [4, 2]
