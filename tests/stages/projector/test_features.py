"""What ``get_image_features`` and its like hand out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from torch import Tensor

from flowcut import FlowCut, attach
from flowcut.models import find_parts


def form(features: Any) -> Any:
    """The shapes of features, in the lists they come in."""
    return tuple(features.shape) if isinstance(features, Tensor) else [form(one) for one in features]


@pytest.mark.parametrize("name", list(zoo.CASES))
@torch.no_grad()
def test_at_full_budget_features_come_in_the_uncut_form(name: str) -> None:
    case = zoo.case(name)
    inputs = case.together(case.samples)
    _, parts = find_parts(case.model)

    def handed_out() -> list[Any]:
        outputs = case.model(**inputs)
        names = [f"{modality}_outputs" for modality in parts.placeholders]
        return [form(outputs[one].pooler_output) for one in names if outputs.get(one) is not None]

    expected = handed_out()
    with attach(case.model, FlowCut(retain_ratio=1.0)):
        assert handed_out() == expected
