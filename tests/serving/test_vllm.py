"""What vLLM answers with the plug-in is what transformers answers with the method attached.

Runs where vLLM is installed, in an environment of its own (``.ci/serving``). By default every family meets every
setting of every switch, and every combination of settings some family; ``pytest -n 0 -m '' tests/serving/test_vllm.py``
tries all of them.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import asking
import checkpoints
import pytest
from asking import Case, answered, check, engine

pytest.importorskip("vllm")

SERVED = [*(family for family in checkpoints.FAMILIES if family not in checkpoints.SEE_ALL), asking.MINI]
SWITCHES = ("prefixes", "pictures", "chunks")
SETTINGS = list(product((True, False), repeat=len(SWITCHES)))


def covered() -> set[tuple[str, str, tuple[bool, ...]]]:
    """Two engines for every family, of opposite settings and different methods."""
    chosen = set()
    for number, family in enumerate(SERVED):
        settings = SETTINGS[number % 4]
        opposite = tuple(not one for one in settings)
        first, second = ("compact", "original") if number // 4 % 2 == 0 else ("original", "compact")
        chosen |= {(family, first, settings), (family, second, opposite)}
    return chosen


def grid() -> list[Any]:
    """Every family with every method and every setting, marked where it is not tried by default."""
    always = covered()
    marked = []
    for one in product(SERVED, asking.METHODS, SETTINGS):
        on = " ".join(name for name, setting in zip(SWITCHES, one[2], strict=True) if setting)
        marks = () if one in always else pytest.mark.grid
        marked.append(pytest.param(*one, id=f"{one[0]}, {one[1]}, {on or 'none'}", marks=marks))
    return marked


def options_of(settings: tuple[bool, ...]) -> dict[str, Any]:
    """vLLM's options: caches of prefixes and of pictures, and prompts cut into chunks of 48 tokens."""
    prefixes, pictures, chunks = settings
    return {
        "enable_prefix_caching": prefixes,
        "mm_processor_cache_gb": 1 if pictures else 0,
        "enable_chunked_prefill": chunks,
        "max_num_batched_tokens": 48 if chunks else 1024,
    }


@pytest.mark.parametrize(("family", "method", "settings"), grid())
def test_answers_are_those_of_transformers(
    family: str, method: str, settings: tuple[bool, ...], cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowcut.serving.vllm_model import FlowCutForConditionalGeneration

    case = cases[family]
    encode, encoded = FlowCutForConditionalGeneration._encoded, []

    def counting(self: Any, pixels: Any, rows: list[int], parts: list[int], kwargs: Any) -> Any:
        encoded.extend(rows)
        return encode(self, pixels, rows, parts, kwargs)

    with engine(case.folder, case.methods[method], **options_of(settings)) as running:
        monkeypatch.setattr(FlowCutForConditionalGeneration, "_encoded", counting)
        answers, lengths = answered(running, case.asked, case.silent)
        times = len(encoded)
        again, _ = answered(running, case.asked[:3], case.silent)
    check(answers, case.truth[method])
    check(again, case.truth[method][:3])
    assert lengths == case.cut[method]
    cut = [short < whole for short, whole in zip(lengths, case.uncut, strict=True)]
    # The small picture of one prompt may have no more tokens than the budget.
    assert sum(cut) >= sum(bool(one.pictures) for one in case.asked) - 1
    prefixes, pictures, chunks = settings
    if not prefixes and not pictures:
        assert times == len(case.pictures)
        assert len(encoded) == times + 3
    elif not chunks:
        # Encoded pictures are kept for as many tokens as are batched; of flowcut-mini's the first ones then make room.
        assert times == len(set(case.pictures)) < len(case.pictures)
        assert len(encoded) == times or family == asking.MINI
    assert len(encoded) >= len(set(case.pictures))


def test_every_family_meets_every_setting_by_default() -> None:
    chosen = covered()
    for place in range(len(SWITCHES)):
        met = {(family, settings[place]) for family, _, settings in chosen}
        assert met == set(product(SERVED, (True, False)))
    assert {settings for *_, settings in chosen} == set(SETTINGS)
    assert {(family, method) for family, method, _ in chosen} == set(product(SERVED, asking.METHODS))
