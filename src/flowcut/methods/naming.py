"""Methods from text: a name, or a name with settings such as ``flowcut(history=0.7,cut_every=none)``."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .base import Method
from .settings import BUDGET, read_settings, settings_of, written_value

Known = Mapping[str, type[Method]]


@dataclass(frozen=True)
class MethodExpression:
    """A method as text names it.

    Attributes:
        method: its class.
        settings: the fields that are given and their values, in the order of
            :func:`~flowcut.methods.settings.settings_of`.
    """

    method: type[Method]
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """The one spelling of this expression; reading it gives the same expression."""
        return written(self.method.name, dict(self.settings))

    @property
    def has_budget(self) -> bool:
        """Whether it says itself how many tokens stay."""
        return any(name in BUDGET for name, _ in self.settings)

    def build(self, target_num: int | None = None, retain_ratio: float | None = None) -> Method:
        """The method, with this budget where the expression has none of its own.

        Raises:
            ValueError: no budget, or a bad one, or a setting's value is out of its range.
        """
        given: dict[str, Any] = dict(self.settings)
        if not self.has_budget:
            given |= {"target_num": target_num, "retain_ratio": retain_ratio}
        return self.method(**given)

    def with_settings(self, texts: Sequence[str]) -> MethodExpression:
        """The same with more settings.

        Args:
            texts: each ``NAME=VALUE``.

        Raises:
            ValueError: one is not of this form, names no setting, gives one a second time or has a bad value.
        """
        more: dict[str, str] = {}
        for text in texts:
            name, equals, value = (part.strip() for part in text.partition("="))
            if not (name and equals):
                raise ValueError(f"A setting is given as NAME=VALUE, such as history=0.7; got {text!r}.")
            if name in more or name in dict(self.settings):
                raise ValueError(f"{self.method.name}: {name} is given twice.")
            more[name] = value
        given = {name: written_value(value) for name, value in self.settings} | more
        return MethodExpression(self.method, tuple(read_settings(self.method, given).items()))


def read_expression(text: str, known: Known) -> MethodExpression:
    """One method from text.

    Args:
        text: a name, or a name with settings in brackets.
        known: the methods by name.

    Raises:
        ValueError: as :func:`read_expressions`, or there is not exactly one.
    """
    found = read_expressions(text, known)
    if len(found) != 1:
        raise ValueError(f"One method is wanted here, got {len(found)}: {text!r}.")
    return found[0]


def read_expressions(text: str, known: Known) -> list[MethodExpression]:
    """Methods from text, separated by commas; one that is named twice with the same settings counts once.

    Values are converted by the type of the method's field: ``none``, ``true`` and ``false``, whole numbers, numbers
    (also ``1/3``), names such as ``relation``, and ``(8,16,24)``.

    Args:
        text: such as ``flowcut(history=0.7),flowcut(criteria=relation),visionzip``.
        known: the methods by name.

    Raises:
        ValueError: the text cannot be read, a method or a setting is unknown, or a value is not allowed; the message
            names those that are.
    """
    source = f"[{text}]"
    try:
        listed = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(unreadable(text)) from error
    if not isinstance(listed, ast.List):
        raise ValueError(unreadable(text))
    found: dict[str, MethodExpression] = {}
    for node in listed.elts:
        called = node if isinstance(node, ast.Call) else None
        name = segment(source, node if called is None else called.func)
        if name not in known:
            raise ValueError(f"Unknown method {name!r}; known: {', '.join(known)}.")
        given: dict[str, str] = {}
        if called is not None:
            if called.args:
                raise ValueError(f"{name}: settings are given as NAME=VALUE; got {segment(source, called.args[0])!r}.")
            for keyword in called.keywords:
                if keyword.arg is None:
                    raise ValueError(unreadable(text))
                if keyword.arg in given:
                    raise ValueError(f"{name}: {keyword.arg} is given twice.")
                given[keyword.arg] = segment(source, keyword.value)
        expression = MethodExpression(known[name], tuple(read_settings(known[name], given).items()))
        found[str(expression)] = expression
    return list(found.values())


def segment(source: str, node: ast.expr) -> str:
    """A node as it was written; brackets around a tuple belong to it."""
    return ast.get_source_segment(source, node) or ""


def unreadable(text: str) -> str:
    """The message for text that is no list of methods."""
    return (
        f"{text!r} cannot be read as methods. Write names separated by commas, settings in brackets: "
        "flowcut(history=0.7,cut_every=none),visionzip."
    )


def describe(method: Method, *, budget: bool = False) -> str:
    """A method's name with the settings that differ from its defaults.

    Args:
        method: what to describe.
        budget: whether its budget is told as well.
    """
    changed = {
        name: getattr(method, name)
        for name, setting in settings_of(type(method)).items()
        if (budget or name not in BUDGET) and getattr(method, name) != setting.default
    }
    return written(method.name, changed)


def written(name: str, settings: Mapping[str, Any]) -> str:
    """A name with settings as text."""
    if not settings:
        return name
    return f"{name}({','.join(f'{setting}={written_value(value)}' for setting, value in settings.items())})"
