"""``--model_args``: a method with its settings, our own arguments, and what goes on to the wrapped class."""

from __future__ import annotations

import pytest

from flowcut import FlowCut, FlowCutPlus
from flowcut.harness.arguments import check_names, named_parameters, parts_of, read_model_arguments

OWN = ("wrapped", "journal")


def test_settings_stand_among_the_arguments_under_the_names_of_the_methods_fields() -> None:
    given = read_model_arguments(
        "pretrained=/models/some,method=flowcut_plus,target_num=64,positions=original,wrapped=llava_hf,dtype=float32",
        OWN,
    )
    assert given.method == FlowCutPlus(target_num=64, positions="original")
    assert given.own == {"wrapped": "llava_hf"}
    assert given.rest_string == "pretrained=/models/some,dtype=float32"


def test_settings_may_stand_in_brackets_and_beside_them() -> None:
    given = read_model_arguments("method=flowcut(history=0.7,cut_every=none),retain_ratio=1/9", OWN)
    assert given.method == FlowCut(retain_ratio=1 / 9, history=0.7, cut_every=None)


def test_none_is_the_uncut_model_on_the_same_code() -> None:
    given = read_model_arguments("method=none,pretrained=some", OWN)
    assert given.method is None and given.rest == {"pretrained": "some"}


def test_commas_in_brackets_and_quotes_part_nothing() -> None:
    text = """a=(1,2),b={"x": [1,2]},c='p,q',,d=e"""
    assert list(parts_of(text)) == ["a=(1,2)", """b={"x": [1,2]}""", "c='p,q'", "d=e"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method=flowcut", "needs its budget, target_num or retain_ratio"),
        ("method=flowcot,target_num=9", "Unknown method 'flowcot'"),
        ("target_num=9,target_num=8", "target_num is given twice"),
        ("method=flowcut(target_num=9),target_num=8", "target_num is given twice"),
        ("target_num=nine", "target_num takes a whole number or none; got 'nine'"),
        ("target_num=9,retain_ratio=0.5", "Give exactly one of target_num and retain_ratio"),
        ("method=none,target_num=9", "method=none cuts nothing and takes no settings; got target_num"),
        ("pretrained", "given as NAME=VALUE, separated by commas; got 'pretrained'"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_model_arguments(text, OWN)
    assert message in str(caught.value)


class Loader:
    def __init__(self, pretrained: str, *, device: str = "cuda", **more: object) -> None:
        self.told = (pretrained, device, more)


class Own(Loader):
    def __init__(self, dtype: str = "auto", **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]
        self.dtype = dtype


class Closed(Own):
    def __init__(self, batch_size: int) -> None:
        super().__init__(pretrained=str(batch_size))


def test_arguments_that_nobody_would_read_are_refused() -> None:
    assert named_parameters(Own) == {"dtype", "pretrained", "device"}
    assert named_parameters(Closed) == {"batch_size"}
    check_names({"dtype": "float32"}, named_parameters(Own), "own", None)
    with pytest.raises(ValueError, match=r"histroy is known neither to the method nor to own.*history.*device, dtype"):
        check_names({"histroy": "1"}, named_parameters(Own), "own", FlowCut(target_num=9))
