"""A run's settings: every key is known and documented, what is not is refused with what is allowed."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from flowcut import FlowCut
from flowcut.methods.settings import described_attributes
from flowcut.training.config import (
    DataConfig,
    OptimizeConfig,
    PartsConfig,
    ReportConfig,
    TrainConfig,
    TuneConfig,
)
from flowcut.training.reading import named_method, read_config

ROOT = Path(__file__).parents[2]
FORMS = (TrainConfig, PartsConfig, DataConfig, TuneConfig, OptimizeConfig, ReportConfig)
GOOD: dict[str, Any] = {
    "model": "flowcut-mini",
    "output": "runs/out",
    "method": "flowcut(target_num=64)",
    "data": {"train": "toy"},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def test_what_is_written_is_read_and_can_be_written_again(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, optimize={"rate": "2e-5", "steps": 3}))
    assert config.data.train == ("toy",) and config.optimize.rate == 2e-5 and config.optimize.steps == 3
    assert named_method(config) == FlowCut(target_num=64)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config.as_dict()))
    assert read_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_key_is_explained(form: type[Any]) -> None:
    told = described_attributes(str(form.__doc__))
    if form is TrainConfig:
        assert "parts, data, tune, optimize, report: see" in str(form.__doc__)
        told |= {name: "" for name, hint in get_type_hints(form).items() if is_dataclass(hint)}
    assert {field.name for field in fields(form)} == set(told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "flowcut"}, r"unknown key methods; known at the top: model, output, method"),
        ({"optimize": {"lr": 1}}, r"unknown key optimize\.lr; known there: steps, epochs"),
        ({"optimize": {"rate": "fast"}}, r"optimize\.rate takes a number; got 'fast'"),
        ({"optimize": {"rate": 0}}, r"optimize\.rate must be above 0"),
        ({"optimize": {"batch": 0}}, r"optimize\.batch must be at least 1"),
        ({"optimize": {"batch": True}}, r"optimize\.batch takes a whole number; got True"),
        ({"optimize": {"schedule": "steep"}}, r"optimize\.schedule takes cosine or linear or constant; got 'steep'"),
        ({"optimize": 3}, r"optimize takes keys of its own, got 3"),
        ({"data": {}}, r"data\.train, what to train on, is missing"),
        ({"data": {"train": "toy", "held_out": "a.json", "held_out_share": 0.1}}, "one of data.held_out and"),
        ({"data": {"train": "toy", "held_out_share": 1.0}}, r"held_out_share must lie in \[0, 1\)"),
        ({"tune": {"language": "frozen"}}, "nothing is trained"),
        ({"model": None}, r"give either model, or parts\.language and parts\.tower"),
        ({"parts": {"language": "a", "tower": "b"}}, "give either model"),
        ({"output": ""}, "output, the folder for the result"),
        ({"method": "flowcat(target_num=64)"}, "Unknown method 'flowcat'"),
        ({"method": "flowcut"}, "Give exactly one of target_num and retain_ratio"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(written(tmp_path, **changes))


def test_what_is_no_configuration_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no configuration"):
        read_config(tmp_path / "missing.yaml")
    for text, message in (("a: [", "is not YAML"), ("- 1", "holds no settings")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(tmp_path / "bad.yaml")


def test_the_configurations_that_ship_can_be_read() -> None:
    files = [path for path in (ROOT / "recipes" / "train").glob("*.yaml") if "output:" in path.read_text()]
    assert {"toy.yaml"} <= {path.name for path in files}
    for path in files:
        read_config(path)
