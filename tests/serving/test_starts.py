"""What ends a start of vLLM with the plug-in, what it warns of, and what tells one engine's pictures from another's.

The errors come before weights are read, and say what ``flowcut serve`` says before vLLM starts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import asking
import checkpoints
import pytest
from transformers import Blip2Config

from flowcut import FlowCutError, UnsupportedModelError

vllm = pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints without weights, by family."""

    def folder(family: str) -> Path:
        path = tmp_path_factory.getbasetemp() / f"without-weights-{family}"
        if not path.exists():
            model, processor = checkpoints.FAMILIES[family]()
            model.config.save_pretrained(path)
            processor.save_pretrained(path)
        return path

    return folder


def processor_of(folder: Path, method: str, **options: Any) -> Any:
    """What an engine with these options does to a request's pictures."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    overrides = {"architectures": ["FlowCutForConditionalGeneration"], "flowcut": method}
    options |= {"dtype": "float32", "max_model_len": 1024, "limit_mm_per_prompt": {"image": 2}}
    config = EngineArgs(model=str(folder), hf_overrides=overrides, **options).create_model_config()
    return MULTIMODAL_REGISTRY.create_processor(config)


def made_of(processor: Any, token: str, options: Any = None, name: str | None = None) -> tuple[str, int]:
    """The identity of a picture in vLLM's caches, and how many placeholders stand for it."""
    items = processor.info.parse_mm_data({"image": [asking.picture("", 1)]})
    names = None if name is None else {"image": [name]}
    given = processor(token, items, mm_uuid_items=names, hf_processor_mm_kwargs=options)
    (place,) = given["mm_placeholders"]["image"]
    return given["mm_hashes"]["image"][0], place.get_num_embeds()


@pytest.mark.parametrize(
    ("method", "kind", "words"),
    [
        ("flowcat(target_num=8)", FlowCutError, "flowcat.*--hf-overrides"),
        ("flowcut(target_nun=8)", FlowCutError, "target_nun"),
        ({"target_num": 8}, FlowCutError, '"method"'),
        (None, FlowCutError, "No method is named"),
        ("cdpruner(target_num=8)", UnsupportedModelError, "reads the question"),
        ("fastv(target_num=8)", UnsupportedModelError, "reads the question"),
    ],
)
def test_a_method_that_cannot_be_served_ends_the_start(
    method: Any, kind: type[Exception], words: str, folders: Callable[[str], Path]
) -> None:
    with pytest.raises(kind, match=words), asking.engine(folders("llava"), method):
        pass


def test_a_second_cut_ends_the_start(folders: Callable[[str], Path]) -> None:
    with (
        pytest.raises(UnsupportedModelError, match="decoder_layer=none"),
        asking.engine(folders("llava_next"), "flowcut(target_num=8)"),
    ):
        pass


def test_a_family_that_flowcut_refuses_ends_the_start(folders: Callable[[str], Path], tmp_path: Path) -> None:
    for file in folders("llava").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Blip2Config(
        vision_config=small, qformer_config=small, text_config={"model_type": "opt", **small}, image_token_index=127
    )
    config.save_pretrained(tmp_path)
    with (
        pytest.raises(UnsupportedModelError, match=r"Blip2ForConditionalGeneration.*Q-Former"),
        asking.engine(tmp_path, "flowcut(target_num=8)"),
    ):
        pass


def test_a_budget_that_cuts_nothing_is_warned_of(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowcut.serving import vllm_pictures

    told: list[str] = []
    monkeypatch.setattr(vllm_pictures.logger, "warning_once", lambda message, *more: told.append(message % more))
    for budget, warned in ((8, False), (36, True), (99, True)):
        info = processor_of(folders("llava"), f"flowcut(target_num={budget})").info
        assert info.get_max_image_tokens() == min(budget, 36)
        assert bool(told) == warned
        if warned:
            assert f"target_num={budget}" in told[-1] and "36 visual tokens" in told.pop()


def test_engines_that_share_a_cache_never_share_a_picture(folders: Callable[[str], Path]) -> None:
    names = (
        "flowcut(target_num=8)",
        "flowcut(target_num=9)",
        "flowcut(history=0.7,target_num=8)",
        "random(target_num=8)",
    )
    engines = [processor_of(folders("llava"), name) for name in names]
    pictures = [made_of(one, "<image>") for one in engines]
    assert pictures[0] == made_of(engines[0], "<image>")
    assert len({identity for identity, _ in pictures}) == len(names)
    assert [count for _, count in pictures] == [8, 9, 8, 8]
    # A request may bring its own name for a picture, which says nothing of the engine's method.
    assert len({made_of(one, "<image>", name="mine")[0] for one in engines}) == len(names)


def test_a_requests_own_options_are_counted_with(folders: Callable[[str], Path]) -> None:
    processor = processor_of(folders("qwen2_vl"), "flowcut(retain_ratio=0.5,decoder_layer=none)")
    token, counted = checkpoints.PICTURES["qwen2_vl"], []
    for options in ({}, {"size": {"shortest_edge": 224 * 224, "longest_edge": 448 * 448}}):
        own = processor.info.get_hf_processor().image_processor
        uncut = int(own(images=asking.picture("", 1), **options)["image_grid_thw"].prod()) // 4
        counted.append(uncut)
        assert made_of(processor, token, options)[1] == round(uncut / 2)
    assert counted[0] < counted[1]


def test_videos_are_turned_away_before_the_engine(folders: Callable[[str], Path]) -> None:
    from vllm.exceptions import VLLMValidationError

    info = processor_of(folders("qwen2_vl"), "flowcut(target_num=8,decoder_layer=none)").info
    assert dict(info.supported_mm_limits) == {"image": None}
    with pytest.raises(VLLMValidationError, match=r"At most 0 video"):
        info.validate_num_items("video", 1)


@pytest.mark.parametrize("family", checkpoints.SEE_ALL)
def test_visual_tokens_that_see_one_another(
    family: str, cases: dict[str, asking.Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, as vLLM's attention on a CPU hides some of them; all else is right: so it answers what it can see."""
    from flowcut.serving import vllm_model

    case = cases[family]
    with (
        pytest.raises(UnsupportedModelError, match="CPU_ATTN"),
        asking.engine(case.folder, case.methods["original"]),
    ):
        pass
    monkeypatch.setattr(vllm_model, "check_attention", lambda *_: None)
    with asking.engine(case.folder, case.methods["original"]) as running:
        answers, lengths = asking.answered(running, case.asked, case.silent)
    asking.check(answers, case.truth["original"])
    assert lengths == case.cut["original"]
