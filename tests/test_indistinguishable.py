"""What is indexed by a column of ``input_ids`` has the value of that column, on every family and at every stage.

At full budget an attached model cannot be told from the uncut one. With a cut, every output is that of the plain second
computation (``oracle.py``) over the kept columns, laid out by the columns of the call.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import families
import oracle
import padding
import pytest
import tiny
import tiny_qwen
import torch
import transformers
import zoo
from packaging.version import Version
from renamed import CACHE
from torch import Tensor, nn
from transformers import Cache

from flowcut import DivPrune, FastV, FlowCut, Method, attach
from flowcut.models import find_parts

CUTS: dict[str, type[Method]] = {"tower": FlowCut, "projector": DivPrune, "decoder": FastV}
BUDGET = 12
EVERY = [pytest.param(stage, name, id=f"{stage}-{name}") for name in zoo.CASES for stage in CUTS]
every_cut_of_every_family = pytest.mark.parametrize(("stage", "name"), EVERY)

# A random model may well answer with a placeholder, which asks for one more image, or with an end.
SILENT = [2, tiny.IMAGE_TOKEN, families.VIDEO_TOKEN, tiny_qwen.IMAGE, tiny_qwen.VIDEO]
RECORDED: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
STEPS = 3
GREEDY: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": SILENT, **RECORDED}


@cache
def model_of(name: str, attention: str = "sdpa") -> Any:
    """The tiny model of a family; the eager ones are copies of the others."""
    model = zoo.case(name).model
    if attention != "sdpa":
        model = copy.deepcopy(model)
        model.set_attn_implementation(attention)
    return model


@cache
def batch_of(name: str, layout: str = "left") -> dict[str, Tensor]:
    """Two samples with images and a text that is the longest of the three."""
    case = zoo.case(name)
    return padding.spread(case.together([*case.samples, text_of(name)]), layout)


def text_of(name: str) -> Any:
    """A sample without images, longer than those with."""
    case = zoo.case(name)
    if isinstance(case.samples[0], tiny_qwen.Sample):
        longest = max(len(sample.tokens) for sample in case.samples)
        return tiny_qwen.sample([], [], longest, seed=9)
    longest = max(len(sample["input_ids"]) for sample in case.samples)
    return {"input_ids": families.prompt([], words=longest, seed=9)}


def alone(name: str, sample: Any) -> dict[str, Tensor]:
    """One sample as a batch."""
    if isinstance(sample, tiny_qwen.Sample) or "pixel_values" in " ".join(sample):
        return zoo.case(name).together([sample])
    return families.collate([sample])


def labels_of(inputs: dict[str, Tensor]) -> Tensor:
    """Labels on all columns, placeholders included, but for padding and the first token of every row."""
    mask = inputs["attention_mask"].bool()
    first = mask & (mask.long().cumsum(dim=1) == 1)
    return inputs["input_ids"].masked_fill(~mask | first, -100)


IN_ORDER = Version(transformers.__version__) >= Version("5.23")
"""Whether the uncut model gives beams the images of their sample in order; before, it mixes them up."""

TOKENS = ("image_hidden_states", "video_hidden_states")
"""Visual tokens one after the other; older versions of transformers hand out those of every frame apart."""

TOWER = ("image_outputs", "video_outputs")
"""What a vision tower put out; its own states are looked at apart: layers that the model never reads do not run."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and number in nested outputs, with the way to it; of a cache its keys and values."""
    if isinstance(value, Cache):
        yield f"{path}.length", value.get_seq_length()
        for number, layer in enumerate(value.layers):
            yield f"{path}.keys[{number}]", layer.keys
            yield f"{path}.values[{number}]", layer.values
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name in TOWER and inner is not None:
                inner = features_of(inner)
            if name in TOKENS and isinstance(inner, Tensor):
                inner = inner.flatten(0, -2)
            yield from leaves(inner, f"{path}.{name}")
    elif isinstance(value, (tuple, list)):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{number}]")
    elif value is not None:
        yield path, value


def features_of(output: Any) -> Tensor:
    """All visual tokens that a tower hands out, one after the other."""
    return torch.cat([tokens.flatten(0, -2) for tokens in output.pooler_output])


def check_same(found: Any, expected: Any) -> None:
    """Nested outputs agree in form, and in every number to 1e-6."""
    ours, theirs = dict(leaves(found)), dict(leaves(expected))
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(
                ours[path], value, rtol=1e-6, atol=1e-6, msg=lambda text, path=path: f"{path}: {text}"
            )
        else:
            assert ours[path] == value, path


def base_of(model: Any) -> Any:
    """The model without its head."""
    return find_parts(model)[1].base


@torch.no_grad()
def everything(model: Any, name: str, layout: str) -> dict[str, Any]:
    """All that transformers gives for a batch: forward, loss, cache, and generation of three kinds."""
    inputs = batch_of(name, layout)
    short = zoo.case(name).together(zoo.case(name).samples)
    given: dict[str, Any] = {"output_hidden_states": True}
    if model.config._attn_implementation == "eager":
        given["output_attentions"] = True
    found = {
        "forward": model(**inputs, **given, labels=labels_of(inputs)),
        "base": base_of(model)(**inputs, **given),
        "tuple": model(**inputs, return_dict=False)[:2],
        "greedy": model.generate(**short, **GREEDY, **given),
    }
    if IN_ORDER:
        found["beams"] = model.generate(**short, **GREEDY, num_beams=2)
        torch.manual_seed(5)
        found["sampled"] = model.generate(**short, **{**GREEDY, "do_sample": True}, num_return_sequences=2)
    found["rope_deltas"] = getattr(base_of(model), "rope_deltas", None)
    return found


@cache
def uncut(name: str, attention: str, layout: str) -> dict[str, Any]:
    """All that the uncut model gives."""
    return everything(model_of(name, attention), name, layout)


@every_cut_of_every_family
def test_at_full_budget_every_output_is_that_of_the_uncut_model(stage: str, name: str) -> None:
    expected = uncut(name, "sdpa", "both")
    with attach(model_of(name), CUTS[stage](retain_ratio=1.0)):
        check_same(everything(model_of(name), name, "both"), expected)


@pytest.mark.parametrize("name", zoo.CASES)
@torch.no_grad()
def test_at_full_budget_attention_weights_are_those_of_the_uncut_model(name: str) -> None:
    model, inputs = model_of(name, "eager"), batch_of(name, "both")
    expected = model(**inputs, output_attentions=True)
    assert len(expected.attentions) > 1
    for method in CUTS.values():
        with attach(model, method(retain_ratio=1.0)):
            check_same(model(**inputs, output_attentions=True), expected)


@pytest.mark.parametrize("name", zoo.CASES)
@torch.no_grad()
def test_at_full_budget_the_towers_own_states_are_those_of_the_uncut_model_as_far_as_it_is_read(name: str) -> None:
    model, inputs = model_of(name, "eager"), batch_of(name)
    given = {"output_hidden_states": True, "output_attentions": True}
    expected = model(**inputs, **given)
    family, parts = find_parts(model)
    read = len(parts.tower.layers)
    if parts.tower.packing is None:
        read = max(family.feature_choice(parts, {}).layers)
    for method in CUTS.values():
        with attach(model, method(retain_ratio=1.0)):
            found = model(**inputs, **given)
        for output in {"image_outputs", "video_outputs"} & expected.keys():
            for states in ("hidden_states", "attentions"):
                ours, theirs = getattr(found[output], states), getattr(expected[output], states)
                assert (ours is None) == (theirs is None), f"{output}.{states} of {method.name}"
                until = read + (states == "hidden_states")
                check_same((ours or ())[:until], (theirs or ())[:until])


class Attached:
    """One call of an attached model, made once, and what it must give.

    Attributes:
        output: of the model.
        base: output of the model without its head.
        trace: of both.
        rows: every sample by itself.
        expected: the rows by columns.
    """

    @torch.no_grad()
    def __init__(self, stage: str, name: str, layout: str, attention: str = "sdpa") -> None:
        options = {"output_hidden_states": True, "output_attentions": attention == "eager"}
        self.model, self.inputs = model_of(name, attention), batch_of(name, layout)
        self.method = CUTS[stage](target_num=BUDGET)
        with attach(self.model, self.method) as handle:
            encoded = oracle.encode(self.model, self.inputs)
            self.base = base_of(self.model)(**self.inputs, **options)
            self.output = self.model(**self.inputs, **options)
            self.trace = handle.trace
        assert any(not image.whole for image in self.trace.images)
        self.rows = oracle.compute(self.model, self.method, self.inputs, encoded, self.trace)
        self.expected = oracle.lay_out(self.rows, self.inputs["attention_mask"])


attached = cache(Attached)


@pytest.mark.parametrize("layout", padding.LAYOUTS)
@every_cut_of_every_family
def test_with_a_cut_every_output_is_the_second_computation_by_columns(stage: str, name: str, layout: str) -> None:
    call = attached(stage, name, layout)
    ids = call.inputs["input_ids"]
    assert call.output.logits.shape[:2] == ids.shape and len(call.output.hidden_states) == zoo.DEPTH + 1
    call.expected.check_output(call.output)
    call.expected.check_output(call.base)


@every_cut_of_every_family
def test_attention_weights_and_cache_are_those_of_the_kept_tokens(stage: str, name: str) -> None:
    call = Attached(stage, name, "both", "eager")
    sequence = call.trace.sequence
    assert sequence is not None
    lengths = [call.output[CACHE].layers[number].keys.shape[2] for number in range(zoo.DEPTH)]
    bounds = [*sequence.stretch_layers, zoo.DEPTH]
    for layer, weights in enumerate(call.output.attentions):
        stretch = sequence.stretches[sum(layer >= bound for bound in bounds)]
        assert lengths[layer] == weights.shape[2] == weights.shape[3] == stretch.new_mask.shape[1]
        for row, own in enumerate(call.rows):
            real = stretch.new_mask[row].bool()
            oracle.close(weights[row][:, real][:, :, real], own.attentions[layer], f"attentions[{layer}][{row}]")


@pytest.mark.parametrize("layout", ["left", "both"])
@every_cut_of_every_family
@torch.no_grad()
def test_every_column_of_a_batch_has_the_value_it_has_in_a_single_row(stage: str, name: str, layout: str) -> None:
    model, inputs = model_of(name), batch_of(name, layout)
    with attach(model, CUTS[stage](target_num=BUDGET)):
        logits = model(**inputs).logits
        for row, sample in enumerate([*zoo.case(name).samples, text_of(name)]):
            single = model(**alone(name, sample)).logits[0]
            oracle.close(logits[row, inputs["attention_mask"][row].bool()], single, f"sample {row}")


@every_cut_of_every_family
@torch.no_grad()
def test_logits_to_keep_names_columns_of_the_call(stage: str, name: str) -> None:
    model, inputs = model_of(name), batch_of(name, "both")
    mask, length = inputs["attention_mask"].bool(), inputs["input_ids"].shape[1]
    middle = length // 2
    of_rows = torch.tensor([[middle, length - 4], [5, middle], [middle + 1, 7]])
    chosen = mask & (torch.arange(length) % 3 == 0)
    by_rows = model(**inputs, logits_to_keep=of_rows).logits.dim() == 3
    with attach(model, CUTS[stage](target_num=BUDGET)):
        logits = model(**inputs).logits
        for wanted, expected, real in (
            (1, logits[:, -1:], mask[:, -1:]),
            (9, logits[:, -9:], mask[:, -9:]),
            (length, logits, mask),
            (torch.tensor([middle]), logits[:, [middle]], mask[:, [middle]]),
            (torch.tensor([3, middle, length - 1]), logits[:, [3, middle, -1]], mask[:, [3, middle, -1]]),
            (of_rows, logits.take_along_dim(of_rows[..., None], 1), mask.take_along_dim(of_rows, 1)),
            (chosen, logits[chosen], mask[chosen]),
        ):
            if (wanted is of_rows or wanted is chosen) and not by_rows:
                # Older versions of transformers know no columns of their own for every row.
                continue
            found = model(**inputs, logits_to_keep=wanted).logits
            assert found.shape == expected.shape and bool(found.isfinite().all())
            oracle.close(found[real], expected[real], f"logits_to_keep={wanted}")


@pytest.mark.parametrize("layout", ["left", "both"])
@every_cut_of_every_family
def test_the_loss_is_that_over_the_kept_sequence(stage: str, name: str, layout: str) -> None:
    call = attached(stage, name, layout)
    labels = labels_of(call.inputs)
    expected = oracle.loss_of(call.rows, labels)
    with attach(call.model, call.method), torch.no_grad():
        output = call.model(**call.inputs, labels=labels)
        oracle.close(output.loss, expected, "loss")
        call.expected.check_output(output)
        kept = torch.zeros_like(labels, dtype=torch.bool)
        for row, own in enumerate(call.rows):
            kept[row, own.columns[-1]] = True
        other = labels.masked_fill(~kept & (labels != -100), 7)
        assert not torch.equal(labels, other)
        assert torch.equal(call.model(**call.inputs, labels=other).loss, output.loss), "cut columns enter the loss"
        items = int((labels != -100).sum())
        share = call.model(**call.inputs, labels=labels, num_items_in_batch=items).loss
        count = sum(int((labels[row, own.columns[-1][1:]] != -100).sum()) for row, own in enumerate(call.rows))
        oracle.close(share, expected * count / items, "loss with num_items_in_batch")
        with pytest.raises(ValueError, match="labels have"):
            call.model(**call.inputs, labels=labels[:, 1:])


@every_cut_of_every_family
@torch.no_grad()
def test_generation_returns_what_the_second_computation_gives_step_by_step(stage: str, name: str) -> None:
    model, method = model_of(name), CUTS[stage](target_num=BUDGET)
    inputs = zoo.case(name).together(zoo.case(name).samples)
    with attach(model, method) as handle:
        encoded = oracle.encode(model, inputs)
        found = model.generate(**inputs, **GREEDY, output_hidden_states=True)
        trace = handle.trace
    length = inputs["input_ids"].shape[1]
    answers = found.sequences[:, length:]
    assert answers.shape[1] == STEPS == len(found.logits)
    rows = oracle.compute(model, method, inputs, encoded, trace, answers)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(answers)], dim=1)
    expected = oracle.lay_out(rows, mask)
    for step in range(STEPS):
        logits = expected.logits[:, length - 1 + step]
        oracle.close(found.logits[step], logits, f"logits of step {step}")
        silenced = logits.index_fill(1, torch.tensor([token for token in SILENT if token < logits.shape[1]]), -1e9)
        assert answers[:, step].tolist() == silenced.argmax(dim=1).tolist()
        columns = slice(length - 1 + step, length + step) if step else slice(0, length)
        for number, states in enumerate(found.hidden_states[step]):
            wanted, real = expected.hidden_states[number][:, columns], expected.mask[:, columns]
            assert states.shape == wanted.shape
            oracle.close(states[real], wanted[real], f"hidden_states[{step}][{number}]")


@every_cut_of_every_family
@torch.no_grad()
def test_beams_have_the_scores_of_the_second_computation(stage: str, name: str) -> None:
    model, method = model_of(name), CUTS[stage](target_num=BUDGET)
    inputs = zoo.case(name).together(zoo.case(name).samples)
    with attach(model, method) as handle:
        encoded = oracle.encode(model, inputs)
        model(**inputs)
        trace = handle.trace
        found = model.generate(**inputs, **GREEDY, num_beams=3)
    length = inputs["input_ids"].shape[1]
    answers = found.sequences[:, length:]
    rows = oracle.compute(model, method, inputs, encoded, trace, answers)
    for row, score in enumerate(found.sequences_scores):
        # Suppressed tokens lose their score behind the softmax.
        steps = rows[row].logits[-STEPS - 1 : -1].log_softmax(dim=-1)
        oracle.close(score, steps.gather(1, answers[row][:, None]).sum() / STEPS, "score of a beam")


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("stage", CUTS)
@torch.no_grad()
def test_rope_deltas_are_those_of_the_uncut_model(stage: str, name: str) -> None:
    model, inputs = model_of(name), batch_of(name, "both")
    model(**inputs)
    expected = model.model.rope_deltas.clone()
    with attach(model, CUTS[stage](target_num=BUDGET)):
        output = model(**inputs)
    assert torch.equal(model.model.rope_deltas, expected)
    assert torch.equal(output.get("rope_deltas", expected), expected)


@every_cut_of_every_family
@torch.no_grad()
def test_embeddings_in_place_of_ids_give_the_same(stage: str, name: str) -> None:
    model, inputs = model_of(name), dict(batch_of(name, "both"))
    ids = inputs["input_ids"]
    if "qwen" in name:
        # Without ids the model knows no places; a caller has to give them.
        accepted = inspect.signature(model.model.get_rope_index).parameters
        inputs["position_ids"] = model.model.get_rope_index(**{key: inputs.get(key) for key in accepted})[0]
    with attach(model, CUTS[stage](target_num=BUDGET)):
        expected = model(**inputs).logits
        del inputs["input_ids"]
        embeds = model.get_input_embeddings()(ids)
        found = model(**inputs, inputs_embeds=embeds).logits
    real = inputs["attention_mask"].bool()
    assert found.shape == expected.shape
    oracle.close(found[real], expected[real], "logits")


@every_cut_of_every_family
@torch.no_grad()
def test_the_kept_form_has_one_entry_for_every_kept_token(stage: str, name: str) -> None:
    call = attached(stage, name, "both")
    with attach(call.model, CUTS[stage](target_num=BUDGET, outputs="kept")) as handle:
        output = call.model(**call.inputs, output_hidden_states=True)
        inner = base_of(call.model)(**call.inputs)
        sequence = handle.trace.sequence
    assert sequence is not None
    last = sequence.stretches[-1].new_mask.bool()
    assert output.logits.shape[:2] == last.shape == inner.last_hidden_state.shape[:2]
    bounds = sequence.stretch_layers
    for row, own in enumerate(call.rows):
        oracle.close(output.logits[row, last[row]], own.logits, "logits")
        oracle.close(inner.last_hidden_state[row, last[row]], own.hidden_states[-1], "last_hidden_state")
        for number, states in enumerate(output.hidden_states):
            real = sequence.stretches[sum(number >= bound for bound in bounds)].new_mask[row].bool()
            oracle.close(states[row, real], own.hidden_states[number], f"hidden_states[{number}]")


@pytest.mark.parametrize("stage", CUTS)
@pytest.mark.parametrize("name", ["llava, clip", "qwen2_5_vl"])
@torch.no_grad()
def test_the_head_runs_on_kept_columns_only(stage: str, name: str) -> None:
    model, inputs, seen = model_of(name), batch_of(name, "both"), []
    head: nn.Module = model.lm_head
    recorder = head.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:-1].numel()))
    with attach(model, CUTS[stage](target_num=BUDGET)) as handle:
        model(**inputs)
        model(**inputs, logits_to_keep=2)
    recorder.remove()
    sequence = handle.trace.sequence
    assert sequence is not None
    assert seen[0] <= sequence.output_columns.numel() and seen[1] <= 2 * len(inputs["input_ids"])


@pytest.mark.parametrize("stage", CUTS)
@torch.no_grad()
def test_what_is_cut_in_front_of_the_first_kept_column_is_zero(stage: str) -> None:
    model, pixels = model_of("llava, clip"), tiny.pictures(2, 3)
    prompts = [tiny.prompt(1, 6, seed)[3:] for seed in (1, 2)]
    inputs = {**tiny.batch([prompts[0], prompts[1][:-2]]), "pixel_values": pixels}
    with attach(model, CUTS[stage](target_num=BUDGET)) as handle:
        output = model(**inputs, output_hidden_states=True)
        sequence = handle.trace.sequence
    assert sequence is not None
    columns = sequence.output_columns
    firsts = [int(row[row >= 0].min()) for row in columns]
    starts = [int(row.nonzero()[0]) for row in inputs["attention_mask"]]
    assert any(first > start for first, start in zip(firsts, starts, strict=True)), "nothing is cut at the start"
    for row, (first, start) in enumerate(zip(firsts, starts, strict=True)):
        assert not output.logits[row, start:first].any()
        assert not output.hidden_states[-1][row, start:first].any()
        assert bool(output.logits[row, first].any())


@pytest.mark.parametrize("stage", CUTS)
@torch.no_grad()
def test_outputs_as_a_tuple_are_by_columns_too(stage: str) -> None:
    for name in ("llava, clip", "qwen2_vl"):
        model, inputs = model_of(name), batch_of(name, "both")
        with attach(model, CUTS[stage](target_num=BUDGET)):
            expected = model(**inputs, output_hidden_states=True)
            for called, first in ((model, "logits"), (base_of(model), "last_hidden_state")):
                named = called(**inputs, output_hidden_states=True)
                unnamed = called(**inputs, output_hidden_states=True, return_dict=False)
                assert torch.equal(unnamed[0], named[first])
                states = next(value for value in unnamed[1:] if isinstance(value, tuple))
                assert [value.shape for value in states] == [value.shape for value in expected.hidden_states]


@torch.no_grad()
def test_the_page_on_outputs_names_every_output() -> None:
    page = (Path(__file__).parents[1] / "docs" / "outputs.md").read_text()
    table = page.split("| output |", 1)[1].split("\n\n", 1)[0]
    said = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    given: set[str] = set()
    for name in ("llava, clip", "video_llava", "qwen2_vl"):
        model, inputs = model_of(name, "eager"), batch_of(name)
        options = {"output_hidden_states": True, "output_attentions": True}
        with attach(model, FlowCut(target_num=BUDGET)):
            given |= model(**inputs, **options, labels=labels_of(inputs)).keys()
            given |= base_of(model)(**inputs, **options).keys()
    assert given - {"image_hidden_states", "video_hidden_states"} <= said


def test_the_form_of_outputs_is_columns_or_kept() -> None:
    for method in CUTS.values():
        assert method(target_num=BUDGET).outputs == "columns"
        with pytest.raises(ValueError, match=r'outputs must be "columns" or "kept"'):
            method(target_num=BUDGET, outputs="shortened")
