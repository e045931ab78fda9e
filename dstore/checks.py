"""Checks of arguments: settings, times, flags, functions, collections.

Every constructor, setter and method checks its arguments with these functions before it uses them.
Each check returns the value as a plain Python object. It raises TypeError for a wrong type and
ValueError for a wrong value; the message names the parameter, what was given and what is allowed.
(Keys are checked in :mod:`dstore.client.translate`, addresses in
:mod:`dstore.transport.addresses`.)
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

ONE = (str, bytes, bytearray, memoryview)
"""Types that can be iterated over and are not collections of keys."""
F = TypeVar("F", bound=Callable[..., Any])

SHOWN_MAX = 100
"""Characters of a value that an error message shows."""
_reprs = reprlib.Repr()
_reprs.maxlevel = 2
_reprs.maxstring = _reprs.maxother = SHOWN_MAX


def seconds(name: str, value: Any, least: float, most: float) -> float:
    """Check a time in seconds, from ``least`` to ``most``; return it as a float.

    Any real number is accepted, such as an int, a Fraction or a NumPy number, but not a bool.
    """
    number = _real(name, value)
    if not least <= number <= most:  # nan is refused, too
        raise ValueError(f"{name} is {least:,g} to {most:,g} seconds, not {shown(value)}")
    return number


def lifetime(name: str, value: Any, most: float) -> float:
    """Check a time in seconds, more than 0 and at most ``most``; return it as a float."""
    number = _real(name, value)
    if not 0 < number <= most:
        raise ValueError(
            f"{name} is more than 0 and at most {most:,.0f} seconds, not {shown(value)}"
        )
    return number


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a number of seconds, not {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def count(name: str, value: Any, least: int, most: int) -> int:
    """Check a whole number (of bytes, of entries) from ``least`` to ``most``; return it as an int.

    A bool or a float is refused.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is a whole number (an int), not {shown(value)}")
    number = operator.index(value)
    if not least <= number <= most:
        raise ValueError(f"{name} is {least:,} to {most:,}, not {shown(value)}")
    return number


def flag(name: str, value: Any) -> bool:
    """Check that a value is True or False; return it. No other value is accepted for them."""
    if value is not True and value is not False:
        raise TypeError(f"{name} is True or False, not {shown(value)}")
    return value


def text(name: str, value: Any, most: int | None = None) -> str:
    """Check a str; with ``most``, one of at most ``most`` characters, all printable."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a str, not {shown(value)}")
    plain = str.__str__(value)  # for a subclass, such as an Enum: the text that it is
    if most is not None and (len(plain) > most or not plain.isprintable()):
        raise ValueError(f"{name} is at most {most} printable characters, not {shown(plain)}")
    return plain


def path(name: str, value: Any) -> str:
    """Check the path of a file or folder (a str, bytes or os.PathLike); return it as a str."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} is a path (a str or an os.PathLike), not {shown(value)}")
    plain = os.fsdecode(value)
    if "\0" in plain:
        raise ValueError(f"{name} is a path, which has no NUL character, not {shown(plain)}")
    return str.__str__(plain)


def function(name: str, value: F) -> F:
    """Check that a value can be called; return it."""
    if not callable(value):
        raise TypeError(f"{name} is a function, not {shown(value)}")
    return value


def several(name: str, value: Any, kind: str = "key") -> Iterable[Any]:
    """Check an iterable of keys, or of another ``kind``; return it.

    A single str or bytes is refused: it would be taken for a collection of its characters.
    """
    if not isinstance(value, Iterable) or isinstance(value, ONE):
        raise TypeError(f"{name} is a list, with each {kind} in it, not {shown(value)}")
    return value


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """Check a mapping, or an object that ``dict`` takes as one; return it, or a dict of it."""
    if isinstance(value, Mapping):
        return value
    kind = type(value)  # for a class, which has the methods too, this is ``type``
    if not (hasattr(kind, "keys") and hasattr(kind, "__getitem__")):
        raise TypeError(f"{name} is a dict or another mapping, not {shown(value)}")
    return dict(value)


def member(name: str, value: Any, protocol: type) -> Any:
    """Check that an object has all attributes that a protocol names; return it."""
    wanted = [each for each in vars(protocol) if each == "__len__" or not each.startswith("_")]
    missing = [each for each in wanted if not hasattr(value, each)]
    if isinstance(value, type) or missing:
        without = "an instance" if isinstance(value, type) else ", ".join(missing)
        raise TypeError(
            f"{name} is a {protocol.__module__}.{protocol.__qualname__}, and {shown(value)} "
            f"lacks {without}"
        )
    return value


def optional(check: Callable[..., Any], name: str, value: Any, *more: Any) -> Any:
    """Apply a check unless the value is None."""
    return None if value is None else check(name, value, *more)


def shown(value: Any) -> str:
    """Return a value as error messages show it: cut, and with its type if that is not obvious."""
    kind = type(value).__name__
    try:
        said = _reprs.repr(value)
    except Exception:  # for example, an int of thousands of digits
        return f"something of the type {kind}"
    if len(said) > SHOWN_MAX:
        said = f"{said[:SHOWN_MAX]}..."
    clear = (
        value is None
        or isinstance(value, (bool, str, bytes))
        or kind in said
        or said.startswith("<")
    )
    return said if clear else f"{said} ({kind})"
