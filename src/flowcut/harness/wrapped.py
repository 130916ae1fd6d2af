"""The model ``flowcut`` of lmms-eval: one of the harness's own classes, with a method attached to its model.

The harness asks a class to make an instance of itself (``create_from_arg_string``); ours makes one of the class that
``wrapped=`` names, so that prompts, preprocessing and generation are the harness's own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models import get_model

from ..checkpoints.loading import check_family, read_config
from ..checkpoints.mini import MINI, mini_folder
from ..measure.efficiency import PACKAGES, installed_versions
from .arguments import ModelArguments, check_names, named_parameters, read_model_arguments
from .journal import Journal
from .session import Session, separate_cached_answers
from .stopping import ending_the_run

OWN = ("wrapped", "efficiency", "efficiency_pairs", "journal")
FROM_THE_HARNESS = ("batch_size", "max_batch_size", "device")


def build_wrapped(text: str, from_the_harness: dict[str, Any], *, simple: bool) -> lmms:
    """An instance of the class that ``wrapped=`` names, a method attached.

    Args:
        text: ``--model_args``.
        from_the_harness: batch size and device as given on its command line.
        simple: whether the harness was told ``--force_simple``.

    Raises:
        ValueError, FlowCutError, OSError: arguments or a model that can't be used; the message says why.
    """
    given = read_model_arguments(text, OWN)
    name = given.own.get("wrapped")
    if name is None or name.startswith("flowcut"):
        raise ValueError(
            "model_args: wrapped=NAME is needed, one of lmms-eval's own classes that loads a Hugging Face model, such "
            f"as llava_hf, qwen2_5_vl, qwen3_vl or internvl_hf; got {name!r}. Without one use --model flowcut_hf."
        )
    wanted = get_model(name, simple)
    rest = dict(given.rest)
    if rest.get("pretrained") == MINI:
        rest["pretrained"] = str(mini_folder())
    known = named_parameters(wanted)
    check_names(rest, known, name, given.method)
    if given.method is not None and "pretrained" in rest:
        check_family(rest["pretrained"], read_config(rest["pretrained"]))
    passed = {one: value for one, value in from_the_harness.items() if one in known and one not in rest}
    if "device_map" in known and "cpu" in (rest.get("device"), passed.get("device")):
        rest.setdefault("device_map", "cpu")  # their own defaults mean CUDA
    built = wanted.create_from_arg_string(ModelArguments(None, {}, rest).rest_string, passed)
    return with_method(built, given)


def with_method(built: lmms, given: ModelArguments) -> lmms:
    """The same instance with the method attached, and whatever else the arguments ask for."""
    weights = [mini_folder().name] if given.rest.get("pretrained") == MINI else []
    record, kept = (Path(given.own[name]) if name in given.own else None for name in ("efficiency", "journal"))
    journal = None
    if kept is not None:
        depends = {
            "method": repr(given.method),
            "rest": given.rest,
            "wrapped": given.own.get("wrapped"),
            "weights": weights,
        }
        depends |= {"class": type(built).__name__, "versions": dict(installed_versions(PACKAGES))}
        journal = Journal(kept, depends, int(os.environ.get("RANK", "0")))
    built.flowcut_session = Session(built, given.method, record, pairs_wanted(given), journal)
    separate_cached_answers(*weights)
    return built


def pairs_wanted(given: ModelArguments) -> bool:
    """Whether some calls run uncut as well, ``efficiency_pairs=``.

    Raises:
        ValueError: it is neither true nor false.
    """
    text = given.own.get("efficiency_pairs", "true").lower()
    if text not in ("true", "false"):
        raise ValueError(f"model_args: efficiency_pairs takes true or false; got {text!r}.")
    return text == "true"


class FlowcutSimple(lmms):  # type: ignore[misc, unused-ignore]
    """``--model flowcut --force_simple``."""

    is_simple = True

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> lmms:
        """See :func:`build_wrapped`; errors end the process."""
        with ending_the_run("setting up --model flowcut"):
            return build_wrapped(arg_string, dict(additional_config or {}), simple=cls.is_simple)


class Flowcut(FlowcutSimple):
    """``--model flowcut``."""

    is_simple = False
