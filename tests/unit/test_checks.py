"""``dstore.checks``: what each check takes, what it makes of it, and what it says otherwise."""

from __future__ import annotations

import enum
import math
import re
from collections import ChainMap, UserDict
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from dstore import checks
from dstore.core.engine import Engine
from dstore.server.engines.memory import MemoryEngine

np = pytest.importorskip("numpy")


def kind(value: object) -> str:
    """How a test is called. (Python cannot show an int of thousands of digits.)"""
    return type(value).__name__


class Name(str, enum.Enum):
    ONE = "one"


class Five(enum.IntEnum):
    FIVE = 5


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def raised(check: Callable[..., Any], *arguments: Any) -> Exception:
    with pytest.raises((TypeError, ValueError)) as caught:
        check("it", *arguments)
    assert str(caught.value).startswith("it is ")
    return caught.value


@pytest.mark.parametrize(
    "value", [2, 2.0, Fraction(2), np.float64(2), np.float32(2), np.int8(2), np.uint64(2)], ids=kind
)
def test_seconds(value: Any) -> None:
    number = checks.seconds("it", value, 0.5, 60)
    assert (number, type(number)) == (2.0, float)


@pytest.mark.parametrize(
    "value",
    [True, np.True_, "2", b"2", None, 2j, Decimal(2), np.array([2.0]), [2], Odd(), object()],
    ids=kind,
)
def test_what_is_no_number_of_seconds(value: Any) -> None:
    assert isinstance(raised(checks.seconds, value, 0.5, 60), TypeError)


@pytest.mark.parametrize(
    "value",
    [0, -1, 0.4999, 60.0001, 61, math.nan, math.inf, -math.inf, 10**400, 10**5000, -(10**400),
     Fraction(10**400), np.float64("nan"), np.float64("inf")], ids=kind
)  # fmt: skip
def test_seconds_that_are_not_allowed(value: Any) -> None:
    error = raised(checks.seconds, value, 0.5, 60)
    assert isinstance(error, ValueError)
    assert "0.5 to 60 seconds" in str(error)


@pytest.mark.parametrize("value", [5, np.int64(5), np.uint8(5), Five.FIVE], ids=kind)
def test_a_count(value: Any) -> None:
    number = checks.count("it", value, 1, 5)
    assert (number, type(number)) == (5, int)


@pytest.mark.parametrize(
    "value",
    [True, False, 5.0, 2000.5, math.nan, np.float64(5), Fraction(5), Decimal(5), "5", None],
    ids=kind,
)
def test_what_is_no_count(value: Any) -> None:
    assert isinstance(raised(checks.count, value, 0, 10_000), TypeError)


@pytest.mark.parametrize("value", [0, -1, 10_001, 1 << 64, 10**5000], ids=kind)
def test_a_count_that_is_not_allowed(value: int) -> None:
    error = raised(checks.count, value, 1, 10_000)
    assert isinstance(error, ValueError)
    assert "1 to 10,000" in str(error)


def test_a_flag() -> None:
    assert checks.flag("it", True) is True
    assert checks.flag("it", False) is False
    value: Any
    for value in (1, 0, None, "no", "", np.True_, 5.0):
        assert isinstance(raised(checks.flag, value), TypeError)


def test_a_text() -> None:
    assert checks.text("it", "one", 3) == "one"
    assert checks.text("it", "two\nlines") == "two\nlines"
    plain = checks.text("it", Name.ONE, 3)
    assert (plain, type(plain)) == ("one", str)
    value: Any
    for value in (b"one", 1, None, Path("one")):
        assert isinstance(raised(checks.text, value, 3), TypeError)
    for value in ("four", "\n", "\udcff"):
        assert isinstance(raised(checks.text, value, 3), ValueError)


def test_a_path() -> None:
    value: Any
    for value in ("a/b", b"a/b", Path("a/b")):
        assert checks.path("it", value) == "a/b"
    assert checks.path("it", b"\xff") == "\udcff"
    for value in (5, None, True, ["a"], bytearray(b"a")):
        assert isinstance(raised(checks.path, value), TypeError)
    assert isinstance(raised(checks.path, "a\0b"), ValueError)


def test_a_function() -> None:
    assert checks.function("it", print) is print
    value: Any
    for value in ("print", None, 5, [print]):
        assert isinstance(raised(checks.function, value), TypeError)


def test_several() -> None:
    value: Any
    for value in (["a"], ("a",), {"a"}, {"a": 1}, {"a": 1}.keys(), iter(["a"]), np.array(["a"])):
        assert list(checks.several("it", value)) == ["a"]
    for one in ("abc", b"abc", bytearray(b"abc"), memoryview(b"abc"), 5, None, Name.ONE):
        assert isinstance(raised(checks.several, one), TypeError)


def test_a_mapping() -> None:
    class Rows:
        def keys(self) -> list[str]:
            return ["a"]

        def __getitem__(self, key: str) -> int:
            return 1

    value: Any
    for value in (
        {"a": 1}, UserDict(a=1), ChainMap({"a": 1}), MappingProxyType({"a": 1}), Rows(),
    ):  # fmt: skip
        assert dict(checks.mapping("it", value)) == {"a": 1}
    for value in ([("a", 1)], ["a"], "a", None, {"a"}, dict, Rows, iter({"a": 1})):
        assert isinstance(raised(checks.mapping, value), TypeError)


def test_a_member_of_a_protocol() -> None:
    engine = MemoryEngine()
    assert checks.member("it", engine, Engine) is engine
    assert "lacks an instance" in str(raised(checks.member, MemoryEngine, Engine))
    assert "lacks read, bind" in str(raised(checks.member, {}, Engine))


def test_what_may_be_none() -> None:
    assert checks.optional(checks.count, "it", None, 1, 5) is None
    assert checks.optional(checks.count, "it", 3, 1, 5) == 3
    with pytest.raises(ValueError, match="it is 1 to 5"):
        checks.optional(checks.count, "it", 6, 1, 5)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "None"),
        (True, "True"),
        ("5", "'5'"),
        (5, "5 (int)"),
        (b"5", "b'5'"),
        (math.nan, "nan (float)"),
        (Path("a"), "PosixPath('a')"),
        (np.float64(1), "np.float64(1.0)"),
        (print, "<built-in function print>"),
        ("x" * 10_000, None),
        (b"x" * 10_000, None),
        (10**5000, None),
        ([[["x" * 1000] * 1000] * 1000], None),
        (Odd(), None),
    ],
    ids=kind,
)
def test_a_value_in_an_error_is_short_and_clear(value: Any, said: str | None) -> None:
    shown = checks.shown(value)
    assert len(shown) < 120
    assert said is None or re.sub(r"^float64\(", "np.float64(", shown) == said
