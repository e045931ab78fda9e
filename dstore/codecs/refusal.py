"""The error for a value that no codec takes."""

from __future__ import annotations

import sys
from typing import Any

PLAIN = "bytes, str, None, bool, int, float, list, tuple or dict"


def refusal(value: object) -> TypeError:
    """The exception for this value. It names the type and says what to do."""
    kind = type(value)
    return TypeError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be stored; {_advice(value)}"
    )


def _advice(value: object) -> str:
    numpy = sys.modules.get("numpy")  # a value of NumPy's means that it was imported
    array: Any = getattr(numpy, "ndarray", ())
    if isinstance(value, getattr(numpy, "generic", ())):
        return "convert it with .item() first, or to an array with numpy.asarray()"
    if type(value) is array:
        return (
            "an array can be stored by itself, but inside another value only by a Node with "
            "pickle=True; convert it with .tolist() first"
        )
    if isinstance(value, array):
        return "convert it with numpy.asarray() first, or create the Node with pickle=True"
    return (
        f"convert it to {PLAIN} first, or give the Node a Codec for its type, or create the Node "
        "with pickle=True"
    )
