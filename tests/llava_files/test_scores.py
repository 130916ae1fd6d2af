"""The published metrics, by hand-made cases of their definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy_questions

from flowcut.llava_files.scores import score_answers
from flowcut.llava_files.scores.judging import interval_of
from flowcut.llava_files.scores.pope import says_yes
from flowcut.llava_files.scores.scienceqa import letter_in
from flowcut.llava_files.scores.textvqa import plain, question_in, soft_score


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no", False),
        ("NO", True),  # the definition knows these three words alone
        ("There is not, I think", False),
        ("Yes. There is no doubt", True),
        ("No, there isn't", False),
        ("no,way", True),
        ("nothing", True),
        ("", True),
        ("No\nline", True),
    ],
)
def test_pope_reads_no_in_the_first_sentence(text: str, yes: bool) -> None:
    assert says_yes(text) == yes


def test_pope_by_hand(tmp_path: Path) -> None:
    questions, _, annotations = toy_questions.pope(tmp_path)
    said = {"adversarial": "yes yes yes no", "popular": "no yes no yes", "random": "no no no no"}
    texts = [text for category in toy_questions.CATEGORIES for text in said[category].split()]
    answers = toy_questions.write_lines(
        tmp_path / "answers.jsonl", ({"question_id": number, "text": text} for number, text in enumerate(texts))
    )
    score = score_answers(answers, annotations, questions)
    # Labels are no, yes, no, yes: adversarial has 1 true and 2 false positives, 1 false negative.
    first = score.details["adversarial"]
    assert (first["accuracy"], first["yes"], first["recall"]) == (25.0, 75.0, 50.0)
    assert first["precision"] == pytest.approx(100 / 3) and first["F1"] == pytest.approx(40.0)
    assert score.details["popular"]["F1"] == 100.0 and score.details["random"]["F1"] == 0.0
    assert score.value == pytest.approx((40 + 100 + 0) / 3) and score.questions == 12
    assert score.interval[0] <= score.value <= score.interval[1]


def test_pope_that_does_not_pair_is_refused(tmp_path: Path) -> None:
    questions, _, annotations = toy_questions.pope(tmp_path)
    numbers = [number for number in range(12) if number != 1]
    answers = toy_questions.write_lines(
        tmp_path / "answers.jsonl", ({"question_id": number, "text": "no"} for number in numbers)
    )
    with pytest.raises(ValueError, match=r"adversarial: answer 1 is about COCO_2.png, annotation 1 about COCO_1.png"):
        score_answers(answers, annotations, questions)
    with pytest.raises(ValueError, match="--questions"):
        score_answers(answers, annotations)
    twice = toy_questions.write_lines(tmp_path / "twice.jsonl", [{"question_id": 0, "text": "no"}] * 5)
    with pytest.raises(ValueError, match="5 answers, but only 4 annotations"):
        score_answers(twice, annotations, questions)
    other = toy_questions.write_lines(tmp_path / "other.jsonl", [{"question_id": "0", "text": "no"}])
    with pytest.raises(ValueError, match="has no question '0'"):
        score_answers(other, annotations, questions)


@pytest.mark.parametrize(
    ("answer", "compared"),
    [
        ("The Cat", "cat"),
        ("a  an the", ""),
        ("Two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("3.5 mm.", "3.5 mm"),
        ("St. John's", "st john 's"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("lets", "lets"),
        ("hot-dog", "hot dog"),
        ("hot- dog", "hot dog"),
        ("a-b -c", "ab c"),
        ("50%", "50%"),
        ("line\nbreak\ttab", "line break tab"),
        ("what?!", "what"),
        ("." * 40, "." * 8),  # 32 full stops at most
    ],
)
def test_textvqas_plain_form(answer: str, compared: str) -> None:
    assert plain(answer) == compared


@pytest.mark.parametrize(("same", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_textvqas_soft_score_is_the_mean_over_nine_of_ten_humans(same: int, score: float) -> None:
    humans = ["Right."] * same + [f"other{number}" for number in range(10 - same)]
    rounds = [min(1.0, sum(plain(one) == "right" for one in humans[:i] + humans[i + 1 :]) / 3) for i in range(10)]
    assert soft_score("right", humans) == pytest.approx(score)
    assert soft_score("right", humans) == pytest.approx(sum(rounds) / 10)


def test_textvqa_needs_ten_humans() -> None:
    with pytest.raises(ValueError, match="10 human answers each, got 9"):
        soft_score("x", ["x"] * 9)


def test_textvqas_question_is_found_in_its_prompt() -> None:
    assert question_in("What IS it?\nAnswer shortly.") == "what is it?"
    assert question_in("What?\nReference OCR token: a, b\nAnswer shortly.") == "what?"
    assert question_in("Reference OCR token: a\nWhat?\nAnswer shortly.") == "what?"
    assert question_in("OCR tokens: a b. Question: What\nnow? Short answer:") == "what\nnow?"
    with pytest.raises(ValueError, match="none of the forms"):
        question_in("What?")


def test_textvqa_by_hand(tmp_path: Path) -> None:
    questions, _, annotations = toy_questions.textvqa(tmp_path)
    texts = ["Word1.", "the two words", "else"]
    answers = toy_questions.write_lines(
        tmp_path / "answers.jsonl",
        (
            {"question_id": one["question_id"], "prompt": one["text"], "text": text}
            for one, text in zip(toy_questions.read_lines(questions), texts, strict=True)
        ),
    )
    score = score_answers(answers, annotations)
    # Four humans say word1, six "two words", which both is enough; nobody says the last. "two" becomes 2 on both sides.
    assert score.value == pytest.approx(100 * 2 / 3) and score.benchmark == "TextVQA"
    changed = {"question_id": "b2", "prompt": "Unknown?\nShort", "text": "x"}
    with pytest.raises(ValueError, match=r"no annotation for \('b2', 'unknown\?'\)"):
        score_answers(toy_questions.write_lines(answers, [changed]), annotations)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("E", "E"),
        ("F", None),
        ("b", None),
        ("B. the second", "B"),
        ("B.", None),
        ("B) x", None),
        ("I think. The answer is C.", "C"),
        ("The answer is CX", "C"),
        ("The answer is C", None),
        ("The answer is A. The answer is B.", None),
        ("", None),
    ],
)
def test_scienceqa_finds_the_letter(text: str, letter: str | None) -> None:
    assert letter_in(text) == letter


def test_scienceqa_by_hand(tmp_path: Path) -> None:
    _, _, folder = toy_questions.scienceqa(tmp_path)
    said = {"10": ("A", ""), "13": ("The answer is A.", "<image>\n"), "16": ("C", ""), "19": ("B. y", "<image>\n")}
    records: list[dict[str, Any]] = [
        {"question_id": name, "prompt": prompt, "text": text} for name, (text, prompt) in said.items()
    ]
    answers = toy_questions.write_lines(tmp_path / "answers.jsonl", records)
    score = score_answers(answers, folder)  # right are A, B, A, B; C is no option where there are two
    assert (score.value, score.questions) == (50.0, 4)
    assert score.details["IMG"] == {"accuracy": 50.0, "questions": 2}
    assert score.details["text"] == {"accuracy": 50.0, "questions": 2}
    toy_questions.write_lines(answers, records[:1])
    assert score_answers(answers, folder).value == 25.0, "what has no answer is wrong"
    assert score_answers(answers, folder, asked=["10", "13"]).value == 50.0


def test_annotations_that_are_none(tmp_path: Path) -> None:
    answers = toy_questions.write_lines(tmp_path / "answers.jsonl", [{"question_id": 1, "text": "x", "prompt": "a\nb"}])
    with pytest.raises(ValueError, match="holds no annotations that are known"):
        score_answers(answers, tmp_path)
    with pytest.raises(FileNotFoundError, match="No annotations found"):
        score_answers(answers, tmp_path / "gone")
    (tmp_path / "other.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match="does not hold TextVQA's annotations"):
        score_answers(answers, tmp_path / "other.json")
    with pytest.raises(ValueError, match="holds no answers"):
        score_answers(toy_questions.write_lines(answers, []), tmp_path / "other.json")


def test_an_interval_narrows_with_the_number_of_questions() -> None:
    few, many = (interval_of(count, lambda chosen: float((chosen % 2).mean())) for count in (20, 2000))
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 0.5 / 2000**0.5, rel=0.15)
