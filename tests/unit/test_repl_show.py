"""How the REPL shows values: small ones in full, of large ones type, size and beginning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstore.cli.show import BEGINNING, SHOWN_MAX, array_repr, shown
from dstore.quoting import visible

LINE_MAX = SHOWN_MAX + 3 * BEGINNING
"""Characters: a value as it is, or a short one within its description."""

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
    ),
)


@settings(max_examples=50, deadline=None)
@given(PLAIN)
def test_small_values_are_shown_as_python_writes_them(value: object) -> None:
    line = shown(value)
    assert line in (value, visible(repr(value))) or len(repr(value)) > SHOWN_MAX
    assert visible(line) == line


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("x" * SHOWN_MAX, "x" * SHOWN_MAX),
        ("x" * 5000, f"<text of 5,000 characters: '{'x' * BEGINNING}' ...>"),
        ("\x1b" * 5000, f"<text of 5,000 characters: {chr(27) * BEGINNING!r} ...>"),
        (bytes(5000), f"<5,000 bytes: {bytes(BEGINNING)!r} ...>"),
        (memoryview(bytes(5000)), f"<5,000 bytes: {bytes(BEGINNING)!r} ...>"),
        (memoryview(b"abc"), "b'abc'"),
        ([0] * 5000, f"<list of 5,000 items: {repr([0] * 5000)[:BEGINNING]} ...>"),
        (("x" * 9999,), f"<tuple of 1 item: ('{'x' * (BEGINNING - 2)} ...>"),
        (dict.fromkeys(range(5000)), "<dict of 5,000 items: {0: None, 1: None, 2: None"),
    ],
    ids=lambda value: str(value)[:10],
)
def test_of_large_values_type_size_and_beginning_are_shown(value: object, line: str) -> None:
    assert shown(value).startswith(line)
    assert len(shown(value)) <= LINE_MAX


def test_no_more_of_a_large_value_is_written_than_is_shown() -> None:
    class Counted(list):  # type: ignore[type-arg]
        taken = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            for item in super().__iter__():
                Counted.taken += 1
                yield item

    shown(Counted([1]) * 1_000_000)
    assert shown([Counted(["text"] * 1_000_000), b"x"]).startswith("<list of 2 items: [['text', ")
    assert Counted.taken <= 3 * SHOWN_MAX


def test_small_arrays_are_shown_in_full_on_one_line() -> None:
    assert shown(np.array([[1, 2], [3, 4]])) == "array([[1, 2], [3, 4]])"
    assert shown(np.array(["a  b\n", "c"])) == repr(np.array(["a  b\n", "c"]))


@pytest.mark.parametrize(
    ("array", "begin", "end"),
    [
        (
            np.zeros((2000, 3000)),
            "<array of float64, shape (2000, 3000), 48,000,000 bytes: array([[0., 0., 0., ..., ",
            ">",
        ),
        (
            np.full((1000,), 1.2345678901234567),
            "<array of float64, shape (1000,), 8,000 bytes: array([1.23456789,",
            " ...>",
        ),
        (np.zeros((2,) * 22, "u1"), "<array of uint8, shape (2, 2, 2", " 4,194,304 bytes>"),
        (np.zeros(3, "U100000"), "<array of <U100000, shape (3,), 1,200,000 bytes>", ""),
        (
            np.zeros(9999, [(f"field{number}", "f8") for number in range(20)]),
            "<array of [('field0', '<f8'), ('field1', ",
            ">",
        ),
    ],
    ids=["corners", "cut", "dimensions", "items", "fields"],  # not of the arrays: that takes long
)
def test_of_large_arrays_type_size_and_corners_are_shown(
    array: object, begin: str, end: str
) -> None:
    line = shown(array)
    assert line.startswith(begin)
    assert line.endswith(end)
    assert "\n" not in line
    assert len(line) <= LINE_MAX


def test_a_terminal_gets_several_lines() -> None:
    array = np.zeros((2000, 3000))
    assert array_repr(array) == repr(array)
    assert array_repr(np.zeros((2,) * 22)).startswith("<array of float64")
