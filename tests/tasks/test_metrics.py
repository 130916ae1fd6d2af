"""Answers are judged as the tables say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowcut.tasks import normalise, right, score, wilson


@pytest.mark.parametrize(
    ("said", "wanted"),
    [("Yes.", "yes"), (" a  dog", "Dog"), ("The top left", "top left"), ("An apple!", "apple")],
)
def test_case_articles_and_stops_do_not_matter(said: str, wanted: str) -> None:
    assert right(said, wanted)


@pytest.mark.parametrize(("said", "wanted"), [("dogs", "dog"), ("", "dog"), ("top", "top left"), ("a", "ant")])
def test_anything_else_does(said: str, wanted: str) -> None:
    assert not right(said, wanted)


@given(st.text())
def test_normalising_twice_changes_nothing_more_for_plain_answers(text: str) -> None:
    words = "".join(letter for letter in text if letter.isalpha())
    assert normalise(normalise(words)) == normalise(words)


@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_interval_surrounds_the_share(pair: tuple[int, int]) -> None:
    hits, total = pair
    low, high = wilson(hits, total)
    assert 0 <= low <= hits / total + 1e-12
    assert hits / total - 1e-12 <= high <= 1


def test_interval_of_a_known_case() -> None:
    low, high = wilson(8, 10)
    assert math.isclose(low, 0.4902, abs_tol=1e-4)
    assert math.isclose(high, 0.9433, abs_tol=1e-4)
    with pytest.raises(ValueError, match="positive total"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_yes_and_no_get_pope_s_figures() -> None:
    result = score("exist", ["Yes", "Yes", "No", "maybe"], ["Yes", "No", "No", "Yes"])
    assert result.accuracy == 0.5
    assert result.extra == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "yes_rate": 0.5}
    assert score("exist", ["No"], ["Yes"]).extra["f1"] == 0
    assert score("name", ["dog"], ["dog"]).extra == {}


def test_answers_must_match_questions() -> None:
    with pytest.raises(ValueError, match="2 answers to 1 questions"):
        score("name", ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="0 answers"):
        score("name", [], [])
