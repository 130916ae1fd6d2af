"""What every supported image-text-to-text class of transformers must do, on a tiny random model of each.

``pytest -m families`` runs all of it and tells what a new release of transformers breaks; the ordinary suite runs what
is also marked ``always``: a batch with the method that cuts earliest on each class.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import families
import pytest
import tiny_classes
import torch
import transformers
from packaging.version import Version
from tiny_classes import IMAGE, TESTED
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowcut import METHODS, DivPrune, FlowCut, Method, UnsupportedModelError, attach, make_method
from flowcut.models import find_parts
from flowcut.stages.decoder.decoder_pass import DecoderPass
from flowcut.stages.tower.batched_pass import BatchedPass
from flowcut.stages.tower.packed_pass import PackedPass

BUDGET = 3
PICTURES = (1, 2, 0, 1)
"""Pictures in each sample of a batch."""

SETTINGS: dict[str, dict[str, Any]] = {
    "pyramiddrop": {"layers": (1, 2, 3)},
    "sparsevlm": {"layers": (0, 1, 2)},
}
"""Of methods whose defaults name decoder layers that the tiny models do not have."""

# A random model may well answer with a token that stands for something else, or with an end.
OPTIONS: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [2, *range(IMAGE, 160)]}
FORMS = ("flowcut_plus(relevance=text)",)
"""Settings under which a method cuts elsewhere than by default."""

REASONS = (
    "ranks patches by the CLS token, and",
    "Pictures cannot be scaled down for this method:",
    "computes no attention by which tokens could be ranked",
    "ranks by the attention of the next layer",
)
"""Why a method is refused, besides the stages that a class refuses by name."""

STAGES = ["earliest", "divprune", "fastv"]
"""A method of each stage: the earliest that the class has, behind the projector, inside the decoder."""

every_class = pytest.mark.parametrize("model_type", [tiny_classes.named(model_type) for model_type in TESTED])


def make(name: str, **budget: Any) -> Method:
    """The method with settings that fit the tiny models."""
    method = make_method(name, target_num=BUDGET)
    known = {key: value for key, value in SETTINGS.get(name, {}).items() if hasattr(method, key)}
    return replace(method, **{"target_num": None, **(budget or {"target_num": BUDGET}), **known})


@cache
def model_and_samples(model_type: str) -> tuple[Any, list[families.Sample]]:
    """A model, and prompts with so many pictures."""
    model = tiny_classes.tiny_model(model_type)
    return model, [tiny_classes.sample(model, model_type, images, seed) for seed, images in enumerate(PICTURES)]


@cache
def eager_model(model_type: str) -> Any:
    """The same model with attention and experts that torch's counter sees."""
    model = tiny_classes.tiny_model(model_type, attention="eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


def refusal(model: Any, method: Method) -> str:
    """Why a method is refused; empty where it is not."""
    before = families.fingerprint(model)
    try:
        attach(model, method).detach()
    except UnsupportedModelError as error:
        assert families.fingerprint(model) == before
        return str(error)
    return ""


def generated(model: Any, inputs: dict[str, Tensor], **options: Any) -> list[list[int]]:
    """Answers as token ids."""
    answers = model.generate(**inputs, **OPTIONS, **options)
    return answers[:, inputs["input_ids"].shape[1] :].tolist()


def earliest(model: Any) -> Method:
    """The method that cuts earliest on a model: in the tower, else behind the projector."""
    return FlowCut(target_num=BUDGET) if "tower" not in find_parts(model)[1].refusals else DivPrune(target_num=BUDGET)


def of_stage(model: Any, name: str) -> Method:
    """One of :data:`STAGES`; skips where the class refuses it."""
    method = earliest(model) if name == "earliest" else make(name)
    if name != "earliest" and method == earliest(model):
        pytest.skip(f"{name} is the earliest")
    if reason := refusal(model, method):
        pytest.skip(reason)
    return method


@torch.no_grad()
def check_runs(model_type: str, method: Method) -> None:
    """A batch of four gives what single runs give, with and without cache, on either side; full budgets change no bit.

    Nothing is left behind.
    """
    model, samples = model_and_samples(model_type)

    def together(chosen: list[families.Sample], side: str = "left") -> dict[str, Tensor]:
        return tiny_classes.together(model, chosen, side)

    batch = together(samples)
    uncut = model(**batch).logits
    before, registry = families.fingerprint(model), families.registered()
    with attach(model, replace(method, target_num=None, retain_ratio=1.0)):
        assert torch.equal(model(**batch).logits, uncut)
    with attach(model, replace(method, outputs="kept")) as handle:
        logits, kept, answers = [], [], []
        for sample in samples:
            single = together([sample])
            logits.append(model(**single).logits[0])
            kept += [image.kept.tolist() for image in handle.trace.images]
            answers += generated(model, single)
        try:
            uncached = generated(model, together(samples[:1]), use_cache=False)
        except UnsupportedModelError as error:
            # Older releases encode the pictures of some classes anew at every step.
            assert "Leave use_cache on" in str(error) and method.decoder_layers(find_parts(model)[1].second_cut)
            assert Version(transformers.__version__) < Version("5.24")
        else:
            assert uncached == answers[:1]
        for side in ("left", "right"):
            cut = model(**together(samples, side)).logits
            sequence = handle.trace.sequence
            assert sequence is not None
            assert [image.kept.tolist() for image in handle.trace.images] == kept
            if not method.decoder_layers(find_parts(model)[1].second_cut):
                assert sequence.visual_tokens == tuple(BUDGET * images for images in PICTURES)
            left = (sequence.stretches[-1].image >= 0).sum(dim=1)
            assert left.tolist() == [BUDGET * images for images in PICTURES]
            mask = sequence.stretches[-1].new_mask.bool()
            for row, expected in enumerate(logits):
                torch.testing.assert_close(cut[row][mask[row]], expected, rtol=1e-4, atol=1e-4)
        assert generated(model, batch) == answers
    assert torch.equal(model(**batch).logits, uncut)
    assert families.fingerprint(model) == before
    assert families.registered() == registry


@pytest.mark.families
@pytest.mark.always
@every_class
def test_a_batch_equals_single_runs(model_type: str) -> None:
    model, _ = model_and_samples(model_type)
    check_runs(model_type, earliest(model))


@pytest.mark.families
@pytest.mark.parametrize("name", STAGES[1:])
@every_class
def test_a_method_of_each_later_stage(model_type: str, name: str) -> None:
    model, _ = model_and_samples(model_type)
    check_runs(model_type, of_stage(model, name))


@pytest.mark.families
@every_class
@torch.no_grad()
def test_every_method_runs_or_says_why_not(model_type: str) -> None:
    model, samples = model_and_samples(model_type)
    batch = tiny_classes.together(model, samples[:2])
    reasons = (*REASONS, *find_parts(model)[1].refusals.values())
    ran = []
    for name in (*METHODS, *FORMS):
        method = make(name)
        if reason := refusal(model, method):
            assert any(known in reason for known in reasons), reason
            continue
        ran.append(name)
        with attach(model, replace(method, outputs="kept")) as handle:
            try:
                logits = model(**batch).logits
            except ValueError as error:
                # ToMe halves at most, and these towers have few layers.
                assert "Give a larger budget" in str(error)
                continue
            assert bool(logits.isfinite().all())
            assert handle.trace.images and not any(image.whole for image in handle.trace.images)
            assert logits.shape[1] < batch["input_ids"].shape[1]
    assert {"divprune", "cdpruner", "uniform"} <= set(ran), "every class can be cut behind its projector"


@pytest.mark.families
@every_class
@torch.no_grad()
def test_the_language_model_reads_the_kept_features_and_nothing_else(model_type: str) -> None:
    """Against the uncut model, given a prompt without the cut placeholders and the features that are left."""
    model, samples = model_and_samples(model_type)
    if hasattr(tiny_classes.base_of(model), "compute_3d_position_ids"):
        pytest.skip("positions are places in a picture, which the short prompt does not tell")
    if model_type in tiny_classes.BY_SAMPLE:
        pytest.skip("features are handed out by sample")
    inputs = tiny_classes.together(model, samples[:2])
    with attach(model, DivPrune(target_num=BUDGET, outputs="kept")) as handle:
        cut = model(**inputs).logits
        sequence, images = handle.trace.sequence, handle.trace.images
    assert sequence is not None
    outputs = tiny_classes.encoded(model, inputs)
    features = [one[image.placeholder_kept] for one, image in zip(outputs.pooler_output, images, strict=True)]
    outputs.pooler_output = torch.stack(features) if isinstance(outputs.pooler_output, Tensor) else features
    columns = sequence.columns
    short = {
        name: inputs[name].gather(1, columns.clamp(min=0)).masked_fill(columns < 0, 0)
        for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
        if name in inputs
    }
    expected = model(**short, mm_encoder_outputs={"image": outputs}).logits
    real = sequence.attention_mask.bool()
    torch.testing.assert_close(cut[real], expected[real], rtol=1e-4, atol=1e-4)


@pytest.mark.families
@pytest.mark.parametrize("name", STAGES)
@every_class
def test_the_loss_reaches_the_parameters(model_type: str, name: str) -> None:
    model, samples = model_and_samples(model_type)
    families.check_loss(model, tiny_classes.together(model, samples[:2]), of_stage(model, name))


@pytest.mark.families
@pytest.mark.parametrize("name", ["flowcut", "uniform", "fastv"])
@every_class
@torch.no_grad()
def test_flops_are_those_of_torchs_counter(model_type: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = eager_model(model_type), model_and_samples(model_type)[1]
    method = make(name)
    if isinstance(method, FlowCut):
        # Every tile keeps as many patches: padding, which torch counts, would stand in the place of others.
        method = replace(method, couple_batch=True)
    if reason := refusal(model, method):
        pytest.skip(reason)
    inputs = tiny_classes.together(model, samples[:1])
    base = tiny_classes.base_of(model)
    head = model.get_output_embeddings()
    scoring: list[int] = []
    for part in (BatchedPass, PackedPass, DecoderPass):
        monkeypatch.setattr(part, "attend", apart(part.attend, scoring))

    def counted() -> int:
        scoring.clear()
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs, use_cache=False)
        counts = counter.get_flop_counts()
        return counter.get_total_flops() - sum(scoring) - sum(counts[f"{type(model).__name__}.lm_head"].values())

    assert head is model.lm_head and base is not model
    uncut = counted()
    with attach(model, method) as handle:
        cut = counted()
        sequence = handle.trace.sequence
        assert sequence is not None
        assert sequence.flops[0].total == pytest.approx(cut, rel=0.01)
        assert sequence.uncut_flops[0].total == pytest.approx(uncut, rel=0.01)


def apart(attend: Any, scoring: list[int]) -> Any:
    """A part's ``attend`` whose own FLOPs, those of the scoring, are noted."""

    def counting(*args: Any, **kwargs: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            mask = attend(*args, **kwargs)
        scoring.append(counter.get_total_flops())
        return mask

    return counting
