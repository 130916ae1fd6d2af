"""What stands in lmms-eval's ``--model_args``: a method with its settings, and what goes on to the wrapped class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..checkpoints.memory import read_memory
from ..checkpoints.mini import MINI
from ..methods import METHODS, FlowCut, Method
from ..methods.naming import MethodExpression, read_expression
from ..methods.settings import BUDGET, settings_of

UNCUT = "none"
"""The method that is none: the baseline, on the very same code."""

OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""


@dataclass(frozen=True)
class ModelArguments:
    """``--model_args``, read.

    Attributes:
        method: what to attach; ``None`` for ``method=none``.
        own: our other arguments, by name, as text.
        rest: what is left, by name, as text.
    """

    method: Method | None
    own: dict[str, str]
    rest: dict[str, str]

    @property
    def rest_string(self) -> str:
        """What is left as lmms-eval writes it."""
        return ",".join(f"{name}={text}" for name, text in self.rest.items())


def read_model_arguments(text: str, own: tuple[str, ...]) -> ModelArguments:
    """Read ``--model_args``.

    Args:
        text: ``NAME=VALUE`` separated by commas. ``method`` is a method's name, with settings in brackets or as names
            of their own (``method=flowcut,target_num=64,history=0.7``), or ``none``; without it
            what the checkpoint was trained with, else ``flowcut``.
        own: names of further arguments that are ours.

    Raises:
        ValueError: a part is not of this form, a name is given twice, a method, setting or value is not allowed, the
            budget is missing or given twice, or ``method=none`` has settings.
    """
    given: dict[str, str] = {}
    for part in parts_of(text):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals):
            raise ValueError(f"model_args are given as NAME=VALUE, separated by commas; got {part!r}.")
        if name in given:
            raise ValueError(f"model_args: {name} is given twice.")
        given[name] = value
    ours = {name: given.pop(name) for name in own if name in given}
    if not {"method", *settings_of(FlowCut)} & set(given):
        named = given.get("pretrained", MINI)
        memory = None if named == MINI else read_memory(named)
        if memory is not None:
            return ModelArguments(memory.method, ours, given)
    wanted = given.pop("method", FlowCut.name)
    if wanted.lower() == UNCUT:
        every = {name for method in METHODS.values() for name in settings_of(method)}
        extra = [name for name in given if name in every]
        if extra:
            raise ValueError(f"method={UNCUT} cuts nothing and takes no settings; got {', '.join(extra)}.")
        return ModelArguments(None, ours, given)
    expression = read_expression(wanted, METHODS)
    settings = [name for name in settings_of(expression.method) if name in given]
    expression = expression.with_settings([f"{name}={given.pop(name)}" for name in settings])
    return ModelArguments(built(expression), ours, given)


def built(expression: MethodExpression) -> Method:
    """The method of an expression that names its own budget.

    Raises:
        ValueError: it has none, or two, or a setting is out of range.
    """
    if not expression.has_budget:
        name = expression.method.name
        raise ValueError(
            f"model_args: {name} needs its budget, {' or '.join(BUDGET)}; such as method={name},target_num=64."
        )
    return expression.build()


def parts_of(text: str) -> Iterator[str]:
    """The parts between commas that stand in no brackets and no quotes; empty ones are left out."""
    depth, quote, part = 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        else:
            depth += (letter in OPENING) - (letter in CLOSING)
        if letter == "," and not quote and depth <= 0:
            if part.strip():
                yield part.strip()
            part = ""
        else:
            part += letter
    if part.strip():
        yield part.strip()


def named_parameters(wanted: type) -> set[str]:
    """The arguments that a class's constructor names, also those of bases that it hands keyword arguments on to."""
    names: set[str] = set()
    for owner in wanted.__mro__:
        constructor = vars(owner).get("__init__")
        if constructor is None:
            continue
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        names |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if all(one.kind is not one.VAR_KEYWORD for one in parameters):
            break
    return names


def check_names(rest: Mapping[str, str], known: set[str], model: str, method: Method | None) -> None:
    """Refuse arguments that nobody would read.

    Raises:
        ValueError: names them, and those that there are.
    """
    unknown = [name for name in rest if name not in known]
    if unknown:
        settings = f"settings of {method.name}: {', '.join(settings_of(type(method)))}; " if method else ""
        raise ValueError(
            f"model_args: {', '.join(unknown)} is known neither to the method nor to {model}. "
            f"There are: {settings}arguments of {model}: {', '.join(sorted(known))}."
        )
