"""Methods from text: every value by its field's type, and errors that name what is allowed."""

from __future__ import annotations

import sys
from typing import Any, get_args

import pytest

from flowcut import METHODS, FlowCut, PyramidDrop, VisionZip
from flowcut.methods import make_method, make_methods
from flowcut.methods.naming import describe, read_expression, read_expressions
from flowcut.methods.settings import BUDGET, read_value, settings_of, written_value


@pytest.mark.parametrize(
    ("expression", "method"),
    [
        ("flowcut", FlowCut(target_num=64)),
        ("flowcut()", FlowCut(target_num=64)),
        ("flowcut(history=0.7, cut_every=None)", FlowCut(target_num=64, history=0.7, cut_every=None)),
        ("flowcut(cut_every=none,adaptive=false)", FlowCut(target_num=64, cut_every=None, adaptive=False)),
        ("flowcut(criteria='relation')", FlowCut(target_num=64, criteria="relation")),
        ("flowcut(retain_ratio=1/3)", FlowCut(retain_ratio=1 / 3)),
        ("flowcut(target_num=9)", FlowCut(target_num=9)),
        ("pyramiddrop(layers=(2,4))", PyramidDrop(target_num=64, layers=(2, 4))),
        ("pyramiddrop(layers=[2])", PyramidDrop(target_num=64, layers=(2,))),
        ("visionzip(contextual=10, dominant=54)", VisionZip(target_num=64, dominant=54, contextual=10)),
    ],
)
def test_an_expression_is_the_method_with_these_fields(expression: str, method: Any) -> None:
    assert make_method(expression, 64) == method


def test_several_are_separated_by_commas_outside_brackets_and_each_counts_once() -> None:
    text = "flowcut(history=0.7,cut_every=4), flowcut(cut_every=4, history=.7), visionzip, pyramiddrop(layers=(1,2)),"
    names = [str(one) for one in read_expressions(text, METHODS)]
    assert names == ["flowcut(history=0.7,cut_every=4)", "visionzip", "pyramiddrop(layers=(1,2))"]
    assert make_methods(text, 64)[2] == PyramidDrop(target_num=64, layers=(1, 2))


@pytest.mark.parametrize("name", METHODS)
def test_every_field_of_every_method_has_a_meaning_and_reads_what_it_writes(name: str) -> None:
    for setting in settings_of(METHODS[name]).values():
        assert len(setting.meaning) > 10 and len(setting.allowed) > 3, setting
        assert setting.read(written_value(setting.default)) == setting.default
        if str in get_args(setting.hint):
            continue  # text that may name a file; the method itself says what is none
        with pytest.raises(ValueError, match=setting.name):
            setting.read("no such value")


@pytest.mark.parametrize("name", METHODS)
def test_an_expression_reads_back_as_itself(name: str) -> None:
    defaults = {field: setting.default for field, setting in settings_of(METHODS[name]).items() if field not in BUDGET}
    inside = ",".join(f"{field}={written_value(value)}" for field, value in defaults.items())
    expression = read_expression(f"{name}({inside})", METHODS)
    assert read_expression(str(expression), METHODS) == expression
    assert expression.build(64) == METHODS[name](target_num=64)
    assert describe(expression.build(64)) == name


def test_a_description_names_what_differs_from_the_defaults() -> None:
    method = FlowCut(target_num=64, history=0.7, criteria="relation", positions="original")
    assert describe(method) == "flowcut(history=0.7,criteria=relation,positions=original)"
    assert make_method(describe(method), 64) == method
    assert make_method(describe(method, budget=True)) == method
    assert describe(FlowCut(target_num=64, history=0.0)) == "flowcut(history=0)"


@pytest.mark.parametrize("name", METHODS)
def test_the_paper_is_the_one_that_the_methods_file_names(name: str) -> None:
    told = sys.modules[METHODS[name].__module__].__doc__ or ""
    control = METHODS[name].summary.startswith("a control")
    assert (METHODS[name].paper == "") == (control or "arXiv" not in told)
    assert all(part in told for part in METHODS[name].paper.split(", "))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("scissors", r"Unknown method 'scissors'; known: flowcut, flowcut_plus, fastv"),
        ("magic-wand", "Unknown method 'magic-wand'"),
        ("flowcut(histroy=0.7)", r"flowcut has no setting 'histroy'; it has: .*history \(a number\)"),
        ("flowcut(history=much)", "flowcut: history takes a number; got 'much'"),
        ("flowcut(history=nan)", "history takes a number"),
        ("flowcut(retain_ratio=1/0)", "retain_ratio takes a number or none"),
        ("flowcut(history=2)", r"history must lie in \[0, 1\)"),
        ("flowcut(cut_every=1.5)", "cut_every takes a whole number or none; got '1.5'"),
        ("flowcut(criteria=density)", "criteria takes all or relation; got 'density'"),
        ("flowcut(adaptive=1)", "adaptive takes true or false"),
        ("pyramiddrop(layers=(1,x))", r"layers takes whole numbers in brackets, such as \(8,16,24\)"),
        ("flowcut(0.7)", "given as NAME=VALUE; got '0.7'"),
        ("flowcut(history=0.5,history=0.7)", "history is given twice"),
        ("flowcut(history=0.5", "cannot be read as methods"),
        ("flowcut visionzip", "cannot be read as methods"),
        ("flowcut],[visionzip", "cannot be read as methods"),
        ("flowcut(**all)", "cannot be read as methods"),
        ("flow\udcffcut", "cannot be read as methods"),
        ("", "One method is wanted here, got 0"),
        ("flowcut,fastv", "One method is wanted here, got 2"),
    ],
)
def test_mistakes_name_what_is_allowed(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(expression, 64)


def test_settings_are_added_one_by_one() -> None:
    plain = read_expression("flowcut(history=0.7)", METHODS)
    more = plain.with_settings(["cut_every=none", " criteria = relation "])
    assert str(more) == "flowcut(history=0.7,cut_every=none,criteria=relation)"
    assert plain.with_settings([]) == plain and not more.has_budget
    assert plain.with_settings(["target_num=3"]).has_budget
    assert read_expression("pyramiddrop", METHODS).with_settings(["layers=2,4"]).settings == (("layers", (2, 4)),)
    for wrong, message in (
        (["history"], "given as NAME=VALUE"),
        (["=3"], "given as NAME=VALUE"),
        (["history=0.1"], "history is given twice"),
        (["cut_every=2", "cut_every=3"], "cut_every is given twice"),
        (["speed=3"], "no setting 'speed'"),
    ):
        with pytest.raises(ValueError, match=message):
            plain.with_settings(wrong)


def test_a_value_that_is_quoted_as_in_python_is_the_same_value() -> None:
    hint = settings_of(FlowCut)["criteria"].hint
    assert read_value('"relation"', hint) == read_value("relation", hint) == "relation"
