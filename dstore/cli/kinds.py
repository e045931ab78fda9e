"""Types of arguments of the command line: each checks a text and converts it.

They raise ArgumentTypeError, whose message argparse prints.
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
"""More digits are refused here, since Python has its own error for thousands of digits."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


def address(text: str) -> str:
    """Return an address. ``tcp://`` may be left out, as it is where dstore prints an address."""
    return text if "://" in text else f"tcp://{text}"


def as_passed(text: str) -> str | bytes:
    """Return an argument as the shell passed it: text, or bytes that are not UTF-8.

    The bytes count, whatever the locale: what ``dstore keys`` has written is the same key again.
    """
    try:
        return text_or_bytes(os.fsencode(text))
    except UnicodeEncodeError:  # it did not come from a shell
        return text


def between(low: float, high: float, unit: str) -> Callable[[str], float]:
    """Return a converter for a number in a range."""

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
    """Return a converter for a whole number from 1 to ``high``."""

    def convert(text: str) -> int:
        if not text.isdecimal() or len(text) > DIGITS_MAX or not 1 <= int(text) <= high:
            raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to {high:,}")
        return int(text)

    return convert


def folder(text: str) -> str:
    """Return a folder that exists, or "" for none."""
    if text and not os.path.isdir(text):
        raise ArgumentTypeError(f"{text!r} is not a folder")
    return text


def between_sizes(low: int, high: int, such: str = "64K") -> Callable[[str], int]:
    """Return a converter for a number of bytes in a range, with K, M, G or T for powers of 1024."""
    between = "" if high == SIZE_MAX else f" between {low:,} and {high:,} bytes"

    def convert(text: str) -> int:
        match = _SIZE.fullmatch(text.strip())
        number = float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ") if match else 0
        if not low <= number <= high:  # it may be infinite
            raise ArgumentTypeError(f"{text!r} is not a size{between}, such as {such}")
        return int(number)

    return convert


size = between_sizes(1, SIZE_MAX, "512M or 4G")
