"""Every public name has a docstring, so that the API reference (``scripts/docs``) is complete."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "docs"
COMMAND = SCRIPT.read_text(encoding="utf-8").partition("-m pdoc")[2]
MODULES = [word for word in COMMAND.split() if word.startswith("dstore")]
"""The modules that the reference is made of."""


def undocumented(module: ModuleType) -> Iterator[str]:
    """The public names of a module, and of its classes, that have no docstring."""
    if not module.__doc__:
        yield module.__name__
    for name, thing in public(module):
        if not thing.__doc__:
            yield f"{module.__name__}.{name}"
        if inspect.isclass(thing):
            for attribute, value in vars(thing).items():
                if attribute.startswith("_") or not is_code(value):
                    continue
                if not inspect.getdoc(getattr(thing, attribute)):
                    yield f"{module.__name__}.{name}.{attribute}"


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """What a module offers: the names in ``__all__``, or those of its own classes and functions."""
    for name in getattr(module, "__all__", vars(module)):
        thing = getattr(module, name)
        if name.startswith("_") or not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        if hasattr(module, "__all__") or thing.__module__ == module.__name__:
            yield name, thing


def is_code(value: object) -> bool:
    return inspect.isroutine(value) or isinstance(value, (property, classmethod, staticmethod))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module: str) -> None:
    missing = list(undocumented(importlib.import_module(module)))
    # The names of the contract tests say what they test.
    assert [name for name in missing if ".test_" not in name] == []


def test_a_missing_docstring_is_found() -> None:
    module = ModuleType("module", "Documented.")
    source = """
def function(): pass
def documented(): "What it does."
class Class:
    "What it is."
    def method(self): pass
    @property
    def documented(self): "What it is."
    @property
    def value(self): pass
    def _private(self): pass
class Bad(Exception): pass
"""
    exec(source, module.__dict__)
    missing = ["module.function", "module.Class.method", "module.Class.value", "module.Bad"]
    assert list(undocumented(module)) == missing
    assert "dstore" in MODULES and "dstore.testing" in MODULES
