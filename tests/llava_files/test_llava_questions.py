"""Question files in the three forms that LLaVA reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_questions

from flowcut.llava_files.questions import CHOICE_PROMPT, Question, QuestionFile

LETTER = CHOICE_PROMPT["en"]


def test_a_line_gives_its_text_untouched_and_its_id_with_its_type(tmp_path: Path) -> None:
    lines = [
        {"question_id": 7, "image": "a.jpg", "text": "What?\nShort.", "category": "c"},
        {"question_id": "7", "image": "sub/b.jpg", "text": " spaces stay "},
    ]
    file = toy_questions.write_lines(tmp_path / "q.jsonl", lines)
    first, second = QuestionFile(file).read()
    assert first == Question(0, 0, "What?\nShort.", "a.jpg", None, {"question_id": 7, "prompt": "What?\nShort."}, {})
    assert second.first == {"question_id": "7", "prompt": " spaces stay "} and second.visual == "sub/b.jpg"


def test_scienceqa_as_llavas_script_writes_it(tmp_path: Path) -> None:
    file, _, _ = toy_questions.scienceqa(tmp_path)
    plain, pictured, *_ = QuestionFile(file).read()
    asked = f"Context: N/A\nQuestion: word0\nOptions: (A) x (B) y\n{LETTER}"
    assert (plain.text, plain.visual, plain.first) == (asked, None, {"question_id": "10", "prompt": asked})
    assert pictured.text == asked.replace("word0", "word1") and pictured.visual == "13/image.png"
    assert pictured.first["prompt"] == f"<image>\n{pictured.text}"


def test_mmbench_as_llavas_script_writes_it(tmp_path: Path) -> None:
    file = toy_questions.mmbench(tmp_path)
    four, two, three = QuestionFile(file).read()
    asked = "Which?\nA. one\nB. 2\nC. three\nD. four"
    assert four.text == f"{asked}\n{LETTER}"
    assert four.first == {"question_id": 241, "round_id": 0, "prompt": asked}
    assert four.last == {"options": ["one", "2", "three", "four"], "option_char": list("ABCD")}
    assert two.first["prompt"] == 'a "hint"\nover\tlines\nWhat?\nA. yes\nB. no'
    assert three.last["options"] == ["he", "she", "they"] and three.first["question_id"] == 1000241


def test_mmbench_in_rounds_turns_the_options(tmp_path: Path) -> None:
    asked = list(QuestionFile(toy_questions.mmbench(tmp_path), language="cn", all_rounds=True).read())
    assert [(one.first["question_id"], one.first["round_id"]) for one in asked] == [
        *((241, turn) for turn in range(4)),
        *((252, turn) for turn in range(2)),
        *((1000241, turn) for turn in range(3)),
    ]
    assert asked[1].last == {"options": ["2", "three", "four", "one"], "option_char": list("BCDA")}
    assert asked[1].first["prompt"] == "Which?\nA. 2\nB. three\nC. four\nD. one"
    assert all(one.text.endswith("请直接回答选项字母。") for one in asked)
    assert [one.place for one in asked] == list(range(9)) and asked[-1].row == 2


def test_mmbench_is_read_as_pandas_reads_it(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    file = toy_questions.mmbench(tmp_path)
    for one, (_, row) in zip(QuestionFile(file).read(), pandas.read_table(file).iterrows(), strict=True):
        options = [row[letter] for letter in "ABCD" if isinstance(row[letter], str)]
        assert (one.first["question_id"], one.last["options"], one.encoded) == (row["index"], options, row["image"])


@pytest.mark.parametrize("entries", [1, 5, 6, 7])
@pytest.mark.parametrize("chunks", [1, 3, 4])
def test_chunks_are_llavas_and_together_the_file(tmp_path: Path, entries: int, chunks: int) -> None:
    lines = [{"question_id": number, "image": "a", "text": "x"} for number in range(entries)]
    file = toy_questions.write_lines(tmp_path / "q.jsonl", lines)
    pieces = [
        [one.first["question_id"] for one in QuestionFile(file, chunks=chunks, chunk=chunk).read()]
        for chunk in range(chunks)
    ]
    assert [one for piece in pieces for one in piece] == list(range(entries))
    size = -(-entries // chunks)
    assert pieces == [list(range(entries))[first : first + size] for first in range(0, size * chunks, size)]


def test_a_limit_counts_entries(tmp_path: Path) -> None:
    file = toy_questions.mmbench(tmp_path)
    assert QuestionFile(file, limit=2).count() == 2 and QuestionFile(file, limit=2, all_rounds=True).count() == 6


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.txt", "x", r"q.txt is no question file: .jsonl"),
        ("q.jsonl", "", "q.jsonl holds no questions"),
        ("q.jsonl", '{"question_id": 1, "image": "a", "text": "x"}\n{', "q.jsonl, line 2: it is not JSON"),
        ("q.jsonl", '\n{"question_id": 1, "text": "x"}', "q.jsonl, line 2: it has no 'image'"),
        ("q.jsonl", '{"question_id": 1, "image": null, "text": "x"}', "line 1: its image and its text must be strings"),
        ("q.jsonl", '{"question_id": 1, "image": "a", "text": "<image>"}', "line 1: its text holds <image>"),
        ("q.jsonl", "[1]", "q.jsonl, line 1: list indices"),
        ("q.json", "{}", "is not a list of questions"),
        ("q.json", '[{"id": 1}]', "q.json, entry 1: it has no 'conversations'"),
        ("q.tsv", "index\tquestion\n1\tx\n", "q.tsv has no column hint, image"),
        ("q.tsv", "index\tquestion\thint\timage\n1\tx\t\t\n", "q.tsv, row 1: it has no image"),
        ("q.tsv", "index\tquestion\thint\timage\n1\tx\t\ti\tmore\n", "row 1: it has more cells than there are columns"),
    ],
)
def test_what_is_no_question_file_is_told_with_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        QuestionFile(tmp_path / name).count()


def test_bytes_that_are_not_utf_8_are_told(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(b'{"question_id": 1, "image": "a", "text": "\xe9"}\n')
    with pytest.raises(ValueError, match="line 1: it is not JSON in UTF-8"):
        QuestionFile(tmp_path / "q.jsonl").count()


def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([]))
    for settings, message in (
        ({"limit": 0}, "limit must be at least 1"),
        ({"chunks": 2, "chunk": 2}, "Of 2 chunks, numbers 0 to 1 exist; got 2"),
        ({"language": "de"}, "language 'de' is unknown; known: en, cn"),
    ):
        with pytest.raises(ValueError, match=message):
            QuestionFile(tmp_path / "q.json", **settings)
    with pytest.raises(FileNotFoundError, match="No question file found"):
        QuestionFile(tmp_path / "gone.json")
