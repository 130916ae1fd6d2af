"""What ``flowcut`` makes public: found when it is asked for, listed once, seen by type checkers."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest
from typing_extensions import assert_type

import flowcut
from flowcut import attaching, encoding, errors, methods, observing, trace
from flowcut.algorithm import compiling
from flowcut.checkpoints import remembering
from flowcut.methods.base import Method
from flowcut.methods.visionzip import VisionZip


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, flowcut; print(flowcut.__version__); flowcut.FlowCutError; hasattr(flowcut, '_nothing');"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules]);"
        "flowcut.VisionZip; print('torch' in sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout.split("\n")[:3] == [flowcut.__version__, "[]", "True"]


def test_every_public_name_is_the_object_of_its_home() -> None:
    homes = (compiling, attaching, observing, encoding, errors, methods, trace, remembering)
    public: list[str] = import_module("flowcut").__all__
    assert sorted(public) == sorted(name for home in homes for name in import_module(home.__name__).__all__)
    for home in homes:
        names: list[str] = import_module(home.__name__).__all__
        for name in names:
            assert getattr(flowcut, name) is getattr(home, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'flowcut' has no attribute 'VisionZap'"):
        flowcut.VisionZap  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="VisionZap"):
        from flowcut import VisionZap  # type: ignore[attr-defined]  # noqa: F401


def test_type_checkers_see_the_same_names() -> None:
    assert assert_type(flowcut.VisionZip, type[VisionZip]) is VisionZip
    assert assert_type(flowcut.METHODS, dict[str, type[Method]]) is methods.METHODS
    assert assert_type(flowcut.ImageTrace.__name__, str) == "ImageTrace"
    assert callable(flowcut.flowcut)


def test_every_method_has_one_line_in_the_registry_and_no_other() -> None:
    tree = ast.parse(inspect.getsource(methods))
    lines = [
        (node.module, name.name, name.asname)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module != "naming"
        for name in node.names
    ]
    assert all(name == exported for _, name, exported in lines)
    named = [(home, name) for home, name, _ in lines if name != "Method"]
    assert named == [(method.__module__.rpartition(".")[2], method.__name__) for method in methods.METHODS.values()]
    source = inspect.getsource(methods) + inspect.getsource(flowcut)
    for _, name in named:
        assert source.count(f"import {name} as {name}\n") == 1


def test_no_method_was_forgotten_in_the_registry() -> None:
    found = {
        value
        for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}.")
        for value in vars(import_module(module.name)).values()
        if isinstance(value, type) and issubclass(value, Method) and "name" in vars(value) and value is not Method
    }
    assert found == set(methods.METHODS.values())
