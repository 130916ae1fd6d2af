"""The settings of a method: its fields with their types, defaults and meaning, and their values from text.

All of it is read from the method's dataclass and docstring; nothing about a single method stands here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .base import Method

BUDGET = ("target_num", "retain_ratio")
"""The fields that say how many tokens stay; every method has them."""


@dataclass(frozen=True)
class Setting:
    """One field of a method.

    Attributes:
        name: the field's.
        hint: its type, as annotated.
        default: its default.
        meaning: what the docstring says about it, on one line; empty where it says nothing.
    """

    name: str
    hint: Any
    default: Any
    meaning: str

    @property
    def allowed(self) -> str:
        """What may be written for it, in words."""
        return allowed_values(self.hint)

    def read(self, text: str) -> Any:
        """Its value from text.

        Raises:
            ValueError: the text is none of the values that are allowed.
        """
        try:
            return read_value(text, self.hint)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{self.name} takes {self.allowed}; got {text!r}.") from error


def settings_of(method: type[Method]) -> dict[str, Setting]:
    """All fields of a method by name: its own in their order, then those that every method has."""
    hints = get_type_hints(method)
    meanings: dict[str, str] = {}
    for owner in reversed(method.__mro__):
        for name, text in described_attributes(vars(owner).get("__doc__") or "").items():
            more = text.removeprefix(f"see {Method.__name__}; ")
            meanings[name] = text if more == text else f"{meanings[name]} Here: {more}"
    shared = {field.name for field in fields(Method)}
    return {
        field.name: Setting(field.name, hints[field.name], field.default, meanings.get(field.name, ""))
        for field in sorted(fields(method), key=lambda field: field.name in shared)
    }


def read_settings(method: type[Method], texts: Mapping[str, str]) -> dict[str, Any]:
    """Values from text, in the order of :func:`settings_of`.

    Args:
        method: whose settings they are.
        texts: for every setting that is given, its value as it was written.

    Raises:
        ValueError: a name is no setting of the method, or a value is not allowed; names those that are.
    """
    known = settings_of(method)
    for name in texts:
        if name not in known:
            allowed = ", ".join(f"{setting.name} ({setting.allowed})" for setting in known.values())
            raise ValueError(f"{method.name} has no setting {name!r}; it has: {allowed}.")
    try:
        return {name: setting.read(texts[name]) for name, setting in known.items() if name in texts}
    except ValueError as error:
        raise ValueError(f"{method.name}: {error}") from error


def allowed_values(hint: Any) -> str:
    """What values of a type look like as text, in words."""
    arguments = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("none" if part is NoneType else allowed_values(part) for part in arguments)
    if get_origin(hint) is Literal:
        return " or ".join(map(str, arguments))
    if get_origin(hint) is tuple:
        return "whole numbers in brackets, such as (8,16,24)"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]


def read_value(text: str, hint: Any) -> Any:
    """A value of a field's type from text: ``none``, ``true``, ``0.7``, ``1/3``, ``relation``, ``(8,16,24)``.

    Raises:
        ValueError, ZeroDivisionError: the text is no such value.
    """
    text = text.strip()
    arguments = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        if NoneType in arguments and text.lower() == "none":
            return None
        brackets = text[:1] + text[-1:] in ("()", "[]")
        inner = [part for part in arguments if part is not NoneType]
        lists = [part for part in inner if get_origin(part) is tuple]
        return read_value(text, lists[0] if lists and brackets else inner[0])
    if get_origin(hint) is tuple:
        inside = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        return tuple(read_value(part, arguments[0]) for part in inside.split(",") if part.strip())
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if get_origin(hint) is Literal:
        return choice(text, {str(one): one for one in arguments})
    if hint is bool:
        return choice(text.lower(), {"true": True, "false": False})
    return float(Fraction(text)) if hint is float else hint(text)


def choice(text: str, choices: Mapping[str, Any]) -> Any:
    """The choice that a text names.

    Raises:
        ValueError: there is none of that name.
    """
    if text not in choices:
        raise ValueError(text)
    return choices[text]


def written_value(value: Any) -> str:
    """A value as text, so that :func:`read_value` reads the same."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({','.join(written_value(part) for part in value)})"
    if isinstance(value, str) and not value.isidentifier():
        return f"'{value}'"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def described_attributes(docstring: str) -> dict[str, str]:
    """What a docstring's ``Attributes`` section says about each name, on one line and without markup."""
    section = re.search(r"^Attributes:\n((?:[ ]{4}.*\n?|\n)+)", inspect.cleandoc(docstring), re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+): ((?:.*\n?)(?: {5,}.*\n?|\n)*)", section.group(1), re.MULTILINE)
    return {name: plain(text) for name, text in entries}


def plain(text: str) -> str:
    """Text of a docstring on one line, without the marks for code and references."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    return " ".join(text.replace("``", "").split())
