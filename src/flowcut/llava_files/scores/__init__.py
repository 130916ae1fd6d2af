"""The published metrics of benchmarks whose answers can be judged here: POPE, TextVQA and ScienceQA."""

from __future__ import annotations

from .judging import Score, score_answers

__all__ = ["Score", "score_answers"]
