"""The list of all image-text-to-text classes: it covers the installed transformers, and says what attach finds."""

from __future__ import annotations

import pytest
import tiny_classes
import transformers
from packaging.version import Version
from tiny_classes import CLASSES, TESTED

from flowcut.models import FAMILIES, REFUSED
from flowcut.models.classes import known_classes

KNOWN = {row.model_type: row for row in known_classes()}
NEWEST = Version("5.24")
"""The release of transformers that the list was written with."""


def test_every_class_of_the_installed_transformers_is_in_the_list() -> None:
    new = sorted(set(CLASSES) - set(KNOWN))
    assert not new, f"New classes: {new}. Run tools/list_classes.py, and see docs/adding-a-family.md."
    if Version(transformers.__version__).release[:2] == NEWEST.release:
        assert set(KNOWN) == set(CLASSES)


def test_the_list_says_what_attach_finds() -> None:
    here = [model_type for model_type in CLASSES if model_type not in TESTED]
    assert [tiny_classes.support_of(model_type) for model_type in here] == [KNOWN[name] for name in here]


@pytest.mark.families
@pytest.mark.parametrize("model_type", [tiny_classes.named(model_type) for model_type in TESTED])
def test_what_can_be_cut_is_what_the_list_says(model_type: str) -> None:
    found, listed = tiny_classes.support_of(model_type), KNOWN[model_type]
    if Version(transformers.__version__).release[:2] == NEWEST.release:
        assert found == listed
    else:
        # Another release may word a reason otherwise, or leave out a stage; it says so by its reason.
        assert found.supported and (found.model_type, found.class_name) == (model_type, listed.class_name)
        assert not found.projector and all(len(reason) > 20 for reason in (found.tower, found.decoder) if reason)


def test_what_is_refused_has_a_reason() -> None:
    assert all(len(row.reason) > 20 for row in KNOWN.values() if not row.supported)
    assert {row.class_name for row in KNOWN.values()} >= set(REFUSED)
    assert {family.class_name for family in FAMILIES}.isdisjoint(REFUSED)


def test_enough_classes_can_be_cut() -> None:
    supported = [row for row in KNOWN.values() if row.supported]
    assert len(supported) >= 40
    assert sum(not row.tower for row in supported) >= 25
