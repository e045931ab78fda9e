"""Values go in and come out the same, or are refused with a word of advice."""

from __future__ import annotations

import collections
import enum
import threading
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore import codec, content
from dstore.errors import ValueCorrupt
from dstore.messages import Stored

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text() | st.integers(0, 99) | st.binary(), inner, max_size=5)
    ),
    max_leaves=25,
)


def through(value: object) -> tuple[object, bool]:
    name, body = codec.encode(value)
    return codec.decode(Stored(bytes(16), name, body))


def typed(value: Any) -> object:
    """The value with the type of every part, so that 1, True and 1.0 differ."""
    if isinstance(value, (list, tuple)):
        return type(value), [typed(part) for part in value]
    if isinstance(value, dict):
        return dict, [(typed(key), typed(part)) for key, part in value.items()]
    return type(value), value


@given(values)
def test_a_value_comes_out_as_it_went_in(value: object) -> None:
    assert typed(through(value)[0]) == typed(value)


@given(values)
def test_only_what_cannot_be_changed_is_shared(value: object) -> None:
    immutable = through(value)[1]
    assert immutable == isinstance(value, (type(None), bool, int, float, str, bytes))


@pytest.mark.parametrize("value", [bytearray(b"ab"), memoryview(b"ab"), memoryview(b"aXbX")[::2]])
def test_buffers_come_back_as_bytes(value: object) -> None:
    assert through(value) == (b"ab", True)


class Colour(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        1j,
        Colour.RED,
        Point(1, 2),
        collections.OrderedDict(a=1),
        [object()],
        {"a": {1}},
        (1, {1}),
    ],
)
def test_what_would_change_on_the_way_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be stored; convert it to bytes, str"):
        codec.encode(value)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [2**70]])
def test_an_int_that_does_not_fit_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        codec.encode(value)


@pytest.mark.parametrize("value", ["\udcff", ["\udcff"]])
def test_text_that_is_not_text_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        codec.encode(value)


def test_a_value_nested_too_deeply_is_refused() -> None:
    value: list[Any] = []
    for _ in range(2000):
        value = [value]
    with pytest.raises(ValueError, match="cannot be stored"):
        codec.encode(value)


@given(st.sampled_from(["text", "msgpack", "nonsense"]), st.binary())
def test_a_body_of_any_bytes_decodes_or_is_corrupt(name: str, body: bytes) -> None:
    try:
        codec.decode(Stored(bytes(16), name, body))
    except ValueCorrupt:
        pass


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(ValueCorrupt, match="'pickle'"):
        codec.decode(Stored(bytes(16), "pickle", b""))


def test_the_address_of_bytes_is_their_plain_blake3_hash() -> None:
    # the first test vector that the authors of BLAKE3 published: no input at all
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert content.address("bytes", b"") == "b3:" + empty


def test_the_same_bytes_of_another_codec_have_another_address() -> None:
    addresses = {content.address(*codec.encode(value)) for value in (b"1", "1", 1)}
    assert len(addresses) == 3


def nested(kind: type, depth: int) -> Any:
    value: Any = kind()
    for _ in range(depth - 1):
        value = [value] if kind is list else (value,)
    return value


@pytest.mark.parametrize("kind", [list, tuple])
def test_nesting_is_bounded_and_needs_no_great_stack(kind: type) -> None:
    results: list[object] = []

    def work() -> None:
        deepest = nested(kind, codec.DEPTH_MAX)
        results.append(through(deepest)[0] == deepest)
        try:
            codec.encode(nested(kind, codec.DEPTH_MAX + 1))
        except ValueError as error:
            results.append(str(error))

    before = threading.stack_size(256 << 10)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert results == [True, "the value cannot be stored: it is nested more than 100 deep"]


def test_a_stranger_s_deep_tuples_are_corrupt() -> None:
    body = msgpack.packb([])
    for _ in range(codec.DEPTH_MAX + 5):
        body = msgpack.packb([msgpack.ExtType(1, body)])
    with pytest.raises(ValueCorrupt, match="nested"):
        codec.decode(Stored(bytes(16), "msgpack", body))


def test_tuples_may_be_keys() -> None:
    assert through({(1, ("a", 2)): [(3,)]})[0] == {(1, ("a", 2)): [(3,)]}


@pytest.mark.parametrize("value", [msgpack.ExtType(1, b""), [msgpack.Timestamp(0, 0)]])
def test_what_is_msgpack_s_own_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be stored"):
        codec.encode(value)
