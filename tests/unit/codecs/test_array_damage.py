"""Damaged and hostile arrays are decoded as other arrays, or raise ValueCorrupt."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.codecs import Buffer, array
from dstore.errors import ValueCorrupt
from tests.unit.codecs.bodies import PLAIN, corrupt, private, shared, stored

np: Any = pytest.importorskip("numpy")

VALUES: dict[str, Any] = {
    "simple": np.arange(6, dtype="<u2"),
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "structure": np.ones(2, [("a", "<i4"), ("b", "U2", (2,))]),
    "names that are not latin-1": np.ones(2, [("\N{SNOWMAN}", "<i4")]),
}


def file(text: str, data: bytes = b"", version: int = 2) -> bytes:
    """A ``.npy`` file with this text as its header."""
    length, encoding = ("<H", "latin-1") if version == 1 else ("<I", "utf-8")
    header = text.encode(encoding)
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(length, len(header)) + header + data


def entry(descr: object = "<f8", order: object = False, shape: object = (1,)) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': {order!r}, 'shape': {shape!r}}}"


def test_a_file_that_another_program_wrote_is_read() -> None:
    body = file(entry(), struct.pack("<d", 1.5))
    assert PLAIN.decode(stored("ndarray", body)) == [1.5]


# ---- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
def test_a_body_that_was_cut_is_corrupt(name: str) -> None:
    body = PLAIN.encode(VALUES[name]).joined()
    for kind in (private, shared):
        for end in range(len(body)):
            corrupt("ndarray", kind(body[:end]))
        corrupt("ndarray", kind(body + b"\0"))


@pytest.mark.parametrize("name", VALUES)
def test_a_header_that_was_damaged_is_corrupt_or_of_the_same_shape(name: str) -> None:
    value = VALUES[name]
    encoded = PLAIN.encode(value)
    for position, mask in product(range(len(encoded.parts[0])), (0x01, 0x04, 0x10, 0x80)):
        body = bytearray(encoded.joined())
        body[position] ^= mask
        try:
            back: Any = PLAIN.decode(stored("ndarray", bytes(body)))
        except ValueCorrupt:
            continue
        assert (type(back), back.shape, back.nbytes) == (np.ndarray, value.shape, value.nbytes)
        assert not back.dtype.hasobject


# ---- malice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "ends within the header"),
        (file(entry(), bytes(8)).replace(b"NUMPY", b"NUMPI"), "does not begin like a .npy file"),
        (file(entry(), bytes(8), version=4), "does not begin like a .npy file"),
        (file(entry(descr="|O"), bytes(8)), "of object is not stored like this"),
        (file(entry(descr=[("a", "|O")]), bytes(8)), "is not stored like this"),
        (file(entry(descr=("<f8", (2,))), bytes(16)), "is not stored like this"),
        (file(entry(descr="<f7"), bytes(7)), "descr is not a valid dtype"),
        (file(entry(shape=(-1,)), bytes(8)), "something else"),
        (file(entry(shape=(True,)), bytes(8)), r"\(True,\) is not the shape"),
        (file(entry(shape=(2,)), bytes(8)), "its header speaks of"),
        (file(entry(shape=(1 << 62, 4)), bytes(8)), "its header speaks of"),
        (file(entry(shape=(1,) * 100), bytes(8)), "maximum supported dimension"),
        (file(entry(shape=[1]), bytes(8)), "shape is not valid"),
        (file(entry(order=1), bytes(8)), "fortran_order is not a valid bool"),
        (file("{'descr': '<f8'}", bytes(8)), "correct keys"),
        (file("('descr', '<f8')", bytes(8)), "not a dictionary"),
        (file(entry() + " " * 10_000, bytes(8)), "more than 10,000 bytes"),
        (file("__import__('os')", bytes(8)), "something else at 0"),
        (file(entry(shape=(1,)).replace("1", "1L"), bytes(8)), "something else"),
        (file(r"{'\d': 1}", bytes(8)), "something else"),
    ],
)
def test_a_header_that_numpy_would_not_write_is_corrupt(body: bytes, reason: str) -> None:
    with pytest.raises(ValueCorrupt, match=reason):
        PLAIN.decode(stored("ndarray", body))


def test_a_length_beyond_all_bounds_reads_nothing() -> None:
    head = b"\x93NUMPY\2\0" + struct.pack("<I", 0xFFFFFFFF)
    assert "more than 10,000 bytes" in corrupt("ndarray", head + bytes(1000))


DEEP = {
    "signs": "-" * 9900 + "1",
    "brackets": "(" * 9900,
    "brackets that close": "[" * 190 + "]" * 190,
    "dictionaries": "{1:" * 190 + "1" + "}" * 190,
    "negations": "not " * 2400 + "1",
    "powers": "1" + "**1" * 3000,
    "functions": "lambda:" * 1400 + "1",
    "sums": "1" + "+1" * 4900,
    "calls": "a" + "()" * 4900,
    "fields": "{'descr': " + "[('a'," * 95 + "'<f8'" + ")]" * 95 + "}",
    "subarrays": "{'descr': " + "(" * 190 + "'<f8'" + ",(1,))" * 190 + "}",
}


def with_a_small_stack(work: Callable[[], None]) -> None:
    before = threading.stack_size(256 << 10)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)


def test_no_header_overflows_a_small_stack() -> None:
    reasons: dict[str, str] = {}

    def work() -> None:
        for name, text in DEEP.items():
            reasons[name] = corrupt("ndarray", file(text))

    with_a_small_stack(work)
    assert list(reasons) == list(DEEP)
    assert all("something else" in said or "brackets" in said for said in reasons.values())


def test_the_deepest_header_that_is_read_fits_in_a_small_stack() -> None:
    levels = (array.DEPTH_MAX - 1) // 2
    descr: Any = "<u1"
    for _ in range(levels):
        descr = [("a", descr)]
    shapes: list[object] = []

    def work() -> None:
        back: Any = PLAIN.decode(stored("ndarray", file(entry(descr), b"x")))
        shapes.append(back.shape)

    with_a_small_stack(work)
    assert shapes == [(1,)]
    assert "brackets" in corrupt("ndarray", file(entry([("a", descr)]), b"x"))


def test_quotes_without_end_take_no_time() -> None:
    assert "something else at 0" in corrupt("ndarray", file("'" + "\\'" * 4900))


descrs = st.recursive(
    st.text("<>|=?bBhiIlLqfdgFDGSaUVOMm0123456789,()[]:s ", max_size=12),
    lambda inner: (
        st.lists(st.tuples(st.text(max_size=3), inner), max_size=3)
        | st.lists(st.tuples(st.text(max_size=3), inner, st.tuples(st.integers(0, 3))), max_size=2)
        | st.tuples(inner, st.tuples(st.integers(0, 3)))
    ),
    max_leaves=6,
)
texts = (
    st.text("[](){}:,'\"\\ \n0123456789TrueFalsxN<>|fiOVUSMm-+*.", max_size=40)
    | st.builds(entry, descrs, st.booleans(), st.lists(st.integers(0, 9)).map(tuple))
    | st.builds(entry, descrs, st.booleans(), st.just(()))
)


@given(
    texts, st.binary(max_size=16), st.sampled_from([1, 2, 3]), st.sampled_from([private, shared])
)
def test_any_header_is_an_array_or_corrupt(
    text: str, data: bytes, version: int, kind: Callable[[bytes], Buffer]
) -> None:
    try:
        body = kind(file(text, data, version))
    except UnicodeEncodeError:
        return
    try:
        back: Any = PLAIN.decode(stored("ndarray", body))
    except ValueCorrupt:
        return
    assert type(back) is np.ndarray
    assert back.nbytes == len(data)
    assert not back.dtype.hasobject


@given(st.binary(max_size=64), st.sampled_from([b"", b"\x93NUMPY\1\0", b"\x93NUMPY\2\0"]))
def test_any_bytes_are_an_array_or_corrupt(data: bytes, beginning: bytes) -> None:
    corrupt("ndarray", beginning + data)


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("<f8", (2**58, 0)),
        ("<f8", (0, 2**58)),
        ("<f8", (2**40, 0, 2**18)),
        ("|S0", (2**62,)),
        ("|V0", (2**31, 2**31)),
        ([], (2**62,)),
        ([("a", "<f8", (0,))], (2**40,)),
        ([("a", "<f8", (2**20, 0))], (2,)),
        ([("a", "<f8"), ("b", [("c", "<f8", (2**19, 0))], (3,))], (2,)),
    ],
)
def test_an_array_without_bytes_cannot_claim_any_number_of_items(descr: Any, shape: Any) -> None:
    said = corrupt(
        "ndarray", file(entry(descr, shape=shape), bytes(16 if "b" in str(descr) else 0))
    )
    assert "no bytes for" in said or "too big" in said


@pytest.mark.parametrize(
    ("descr", "shape"),
    [("<f8", (0, 768)), ("<f8", (array.EMPTY_ITEMS_MAX, 0)), ("|S0", (9, 9))],
)
def test_an_array_without_bytes_may_have_a_shape(descr: str, shape: tuple[int, ...]) -> None:
    value: Any = PLAIN.decode(stored("ndarray", file(entry(descr, shape=shape))))
    assert value.shape == shape


def test_a_field_without_bytes_may_be_in_as_many_items_as_have_bytes() -> None:
    value = np.zeros(2 * array.EMPTY_ITEMS_MAX, [("a", "u1"), ("b", "<f8", (0,))])
    back: Any = PLAIN.decode(stored("ndarray", PLAIN.encode(value).joined()))
    assert back.shape == value.shape


def test_a_value_that_could_not_be_read_is_not_written() -> None:
    with pytest.raises(TypeError, match="no bytes for"):
        PLAIN.encode(np.zeros((array.EMPTY_ITEMS_MAX + 1, 0)))
