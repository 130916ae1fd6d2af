"""TextVQA's accuracy as the M4C evaluator of MMF defines it, which LLaVA uses.

An answer is brought into a plain form, as on the EvalAI server: lower case, no punctuation, numbers as digits, no
articles, apostrophes where contractions have them. It then gets the mean, over the ten human answers, of
``min(1, matches / 3)``, the matches counted among the other nine.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from .judging import Records, Score, interval_of

HUMANS = 10
ENOUGH = 3
"""So many others who say the same make an answer right."""

ARTICLES = {"a", "an", "the"}
NUMBERS = "zero one two three four five six seven eight nine ten"
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS.split())} | {"none": "0"}
SIGNS = ';/[]"{}()=+\\_-><@`,?!'
STOP = re.compile(r"\.(?!\d)")
STOPS = 32
"""So many full stops are removed at most: the evaluator hands a flag over where the count stands."""

CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
SPELLINGS = {
    word[:place] + word[place + 1 :]: word
    for word in CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}
"""A contraction with one of its apostrophes left out, and how it is written; the last is the evaluator's own."""


def plain(answer: str) -> str:
    """An answer in the form in which it is compared."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = without_signs(text.replace("\n", " ").replace("\t", " ").strip())
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(SPELLINGS.get(word, word) for word in words if word not in ARTICLES)


def without_signs(text: str) -> str:
    """No punctuation: a sign beside a space goes, one between two letters becomes a space."""
    result = text
    for sign in SIGNS:
        beside = f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if beside else " ")
    return STOP.sub("", result, count=STOPS)


def soft_score(answer: str, humans: list[str]) -> float:
    """What an answer gets, 0 to 1.

    Raises:
        ValueError: there are not ten human answers.
    """
    if len(humans) != HUMANS:
        raise ValueError(f"TextVQA's questions have {HUMANS} human answers each, got {len(humans)}.")
    same = Counter(plain(human) for human in humans)[plain(answer)]
    # Of ten rounds, each leaves one human out; in ``same`` of them it is one who said the same.
    left_out, others = min(1.0, (same - 1) / ENOUGH), min(1.0, same / ENOUGH)
    return (same * left_out + (HUMANS - same) * others) / HUMANS if same else 0.0


def question_in(prompt: str) -> str:
    """The question inside the prompt of LLaVA's question file.

    Raises:
        ValueError: the prompt has none of the forms that LLaVA's script knows.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if found is not None:
            return found.group(1).lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ValueError(f"The prompt {prompt!r} has none of the forms of TextVQA's question file.")


def score_textvqa(answers: Records, annotations: Path) -> Score:
    """The mean soft score of all answers.

    Args:
        answers: with ``question_id`` (the picture's id), ``prompt`` and ``text``.
        annotations: ``TextVQA_0.5.1_val.json``.

    Raises:
        ValueError: no annotations, or there is none for an answer.
    """
    try:
        data = json.loads(annotations.read_text(encoding="utf-8"))["data"]
        humans = {(one["image_id"], one["question"].lower()): one["answers"] for one in data}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{annotations} does not hold TextVQA's annotations ({error!r}).") from error
    scores = []
    for answer in answers:
        asked = (answer["question_id"], question_in(answer["prompt"]))
        if asked not in humans:
            raise ValueError(f"{annotations} has no annotation for {asked}.")
        scores.append(soft_score(answer["text"], humans[asked]))
    each = np.array(scores)
    between = interval_of(len(each), lambda chosen: 100 * float(each[chosen].mean()))
    return Score("TextVQA", "accuracy", 100 * float(each.mean()), between, len(each))
