"""Kinds of arguments of the command line, for argparse: each checks a text and converts it.

They raise ArgumentTypeError, with what to say.
"""

from __future__ import annotations

import math
import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable

from dstore.cli.console import text_or_bytes
from dstore.config import SIZE_MAX

DIGITS_MAX = 20
"""Python refuses to read numbers of thousands of digits, in words of its own."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


def address(text: str) -> str:
    """An address; ``tcp://`` may be left out, as it is where dstore prints one."""
    return text if "://" in text else f"tcp://{text}"


def as_passed(text: str) -> str | bytes:
    """An argument as the shell passed it: text, or bytes where these are not UTF-8.

    It is the bytes that count, and not what the locale takes them for: what ``dstore keys`` has
    written is the same key again, in any locale.
    """
    try:
        return text_or_bytes(os.fsencode(text))
    except UnicodeEncodeError:  # no shell has passed this
        return text


def between(low: float, high: float, unit: str) -> Callable[[str], float]:
    """A number in a range."""

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise ArgumentTypeError(f"{text!r} is not between {low:g} and {high:g} {unit}")
        return number

    return convert


def count(high: int) -> Callable[[str], int]:
    """A whole number from 1 on."""

    def convert(text: str) -> int:
        if not text.isdecimal() or len(text) > DIGITS_MAX or not 1 <= int(text) <= high:
            raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to {high:,}")
        return int(text)

    return convert


def folder(text: str) -> str:
    """A folder that there is, or "" for none."""
    if text and not os.path.isdir(text):
        raise ArgumentTypeError(f"{text!r} is not a folder")
    return text


def between_sizes(low: int, high: int) -> Callable[[str], int]:
    """A number of bytes in a range."""

    def convert(text: str) -> int:
        number = _bytes(text)
        if not low <= number <= high:
            raise ArgumentTypeError(
                f"{text!r} is not a size between {low:,} and {high:,} bytes, such as 64K"
            )
        return number

    return convert


def size(text: str) -> int:
    """A number of bytes, with K, M, G or T for powers of 1024."""
    number = _bytes(text)
    if not 1 <= number <= SIZE_MAX:
        raise ArgumentTypeError(f"{text!r} is not a size, such as 512M or 4G")
    return number


def _bytes(text: str) -> int:
    """Return the number of bytes that a size stands for; 0 if it is none."""
    match = _SIZE.fullmatch(text.strip())
    number = float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ") if match else 0
    return int(number) if number <= SIZE_MAX else SIZE_MAX + 1  # it may be infinite
