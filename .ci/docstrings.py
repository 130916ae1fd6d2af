"""What the API reference needs of the docstrings: plain names for roles, one line for each argument.

Docstrings name code as ``:meth:`detach` `` and explain arguments together (``query, key: ...``); the site's reader of
docstrings knows neither.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?([^`]+)`")
TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+)(: .*(?:\n\1 +\S.*)*)", re.MULTILINE)
"""Several names, a colon and the text, which may go on in lines that are indented deeper."""


class PlainDocstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            titled = obj.docstring.value.replace("Class attributes:", "Attributes: Class attributes")
            obj.docstring.value = TOGETHER.sub(apart, ROLE.sub(r"`\1`", titled))


def apart(together: re.Match[str]) -> str:
    """The same text once for each name."""
    indent, names, text = together.groups()
    return "\n".join(f"{indent}{name}{text}" for name in names.split(", "))
