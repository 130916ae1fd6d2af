"""Which method an engine shall work with: from its config, the environment, or the checkpoint itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..checkpoints.memory import has_file, read_memory
from ..errors import FlowCutError
from ..methods import Method, make_method
from ..methods.naming import describe

FIELD = "flowcut"
"""The entry of a model's config that names the method: as text, or as a mapping with ``method`` and its settings."""

VARIABLE = "FLOWCUT_METHOD"
"""The environment variable that names it, as text."""

ASK_FOR_POSITIONS = {"mrope_section": [1, 1, 1]}
"""The entry of a config by which vLLM asks the model itself for the positions of a prompt."""

HOW = (
    f'Give it with --hf-overrides \'{{"{FIELD}": "flowcut(target_num=64)"}}\', with '
    f"{VARIABLE}='flowcut(target_num=64)', or serve a checkpoint that flowcut.save wrote."
)


def method_for(config: Any, model: str) -> Method:
    """The method of an engine.

    Args:
        config: the model's config.
        model: its folder or hub id, asked last, for its ``flowcut.json``.

    Raises:
        FlowCutError: nothing names a method, or what names it cannot be read.
    """
    named = getattr(config, FIELD, None) or os.environ.get(VARIABLE)
    if not named:
        memory = read_memory(model)
        if memory is None:
            raise FlowCutError(f"No method is named for {model}. {HOW}")
        return memory.method
    try:
        return make_method(as_text(named))
    except (TypeError, ValueError) as error:
        raise FlowCutError(f"The method {named!r} cannot be used: {error} {HOW}") from error


def as_text(named: Any) -> str:
    """A method's name with its settings, from text or from a mapping.

    Raises:
        TypeError: it is neither, or the mapping has no ``method``.
    """
    if isinstance(named, str):
        return named
    if not isinstance(named, Mapping) or "method" not in named:
        raise TypeError('it is given as text, or as a mapping such as {"method": "flowcut", "target_num": 64}.')
    settings = ",".join(f"{name}={value}" for name, value in named.items() if name != "method")
    return f"{named['method']}({settings})" if settings else str(named["method"])


def identity_of(method: Method) -> str:
    """What tells the tokens of one engine from those of another: the method with every setting, and our version.

    Of a schedule in a file its contents count as well: the same name may stand for another one elsewhere.

    Raises:
        OSError: the file is not there any more.
    """
    from .. import __version__

    named = f"flowcut {__version__} {describe(method, budget=True)}"
    settings = {field.name: getattr(method, field.name) for field in fields(method)}
    if has_file(settings):
        named += f" {hashlib.sha256(Path(settings['schedule']).read_bytes()).hexdigest()}"
    return named
