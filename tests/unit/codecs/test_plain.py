"""Values of built-in types are decoded as they were encoded, or refused with advice."""

from __future__ import annotations

import array
import collections
import ctypes
import enum
import math
import threading
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore import config
from dstore.codecs import KEPT, Buffer, plain
from dstore.codecs.budget import DEPTH_MAX
from dstore.errors import ValueCorrupt
from dstore.protocol import content
from tests.unit.codecs.bodies import (
    PLAIN,
    checked,
    corrupt,
    kept,
    private,
    shared,
    stored,
    through,
)

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


def typed(value: Any) -> object:
    """The value along with the types of all its parts, so that 1, True and 1.0 differ."""
    if isinstance(value, (list, tuple)):
        return type(value), [typed(part) for part in value]
    if isinstance(value, dict):
        return dict, [(typed(key), typed(part)) for key, part in value.items()]
    return type(value), value


@given(values, st.sampled_from([private, shared]))
def test_a_value_comes_out_as_it_went_in(value: object, kind: Callable[[bytes], Buffer]) -> None:
    assert typed(through(value, kind=kind)) == typed(value)


# ---- kept decoded -----------------------------------------------------------------------------

IMMUTABLE = (type(None), bool, int, float, str, bytes)
NUMBERS = [
    None, False, True, 0, -1, -32, -33, 127, 128, 255, 256, 65_535, 65_536, 2**31, 2**32 - 1, 2**32,
    2**63 - 1, 2**63, 2**64 - 1, -(2**7), -(2**15), -(2**31), -(2**63), 0.0, -0.0, 1.5, 5e-324,
    1.7976931348623157e308, float("inf"), float("-inf"),
]  # fmt: skip


def kept_of(value: object) -> object:
    encoded = PLAIN.encode(value)
    return kept(encoded.codec, encoded.joined())


@given(values)
def test_immutable_values_and_no_others_are_kept_decoded(value: object) -> None:
    found = kept_of(value)
    if isinstance(value, IMMUTABLE):
        assert typed(found) == typed(value)
    else:
        assert found is NotImplemented


@pytest.mark.parametrize("value", NUMBERS)
def test_every_number_is_kept_decoded(value: object) -> None:
    assert repr(kept_of(value)) == repr(value)
    assert len(PLAIN.encode(value).joined()) <= plain.NUMBER_BYTES_MAX


def test_what_is_no_number_is_kept_encoded() -> None:
    assert math.isnan(kept_of(math.nan))  # type: ignore[arg-type]
    others: list[object] = [[], {}, (), [1], {"a": 1}, (1,), [[]], list(range(8)), "x", b"x"]
    for value in others:
        assert kept("msgpack", msgpack.packb(value)) is NotImplemented


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        ("text", b"\xff"),
        ("text", "ü".encode()[:1]),
        ("text", "\ud800".encode("utf-8", "surrogatepass")),
        ("msgpack", b""),
        ("msgpack", b"\xc1"),
        ("msgpack", msgpack.packb(2**64 - 1)[:-1]),
        ("msgpack", msgpack.packb(1) + b"\x01"),
        ("msgpack", b"\x81"),  # a dict without its item
        ("msgpack", msgpack.packb(msgpack.Timestamp(1))),
        ("msgpack", msgpack.packb(msgpack.ExtType(5, b"x"))),
        ("msgpack", b"\x91" * plain.NUMBER_BYTES_MAX),
    ],
)
def test_damaged_values_are_kept_encoded_and_their_readers_told(codec: str, body: bytes) -> None:
    assert kept(codec, body) is NotImplemented
    assert corrupt(codec, body)


@given(st.sampled_from(sorted(KEPT)), st.binary(max_size=20))
def test_a_kept_value_is_the_one_that_is_decoded(codec: str, body: bytes) -> None:
    """Nothing raises, and nothing is kept that a read would refuse or decode to something else."""
    found = kept(codec, body)
    if found is not NotImplemented:
        assert repr(found) == repr(PLAIN.decode(stored(codec, body)))


@pytest.mark.parametrize("body", [b"\xcc\x01", b"\xd3" + bytes(8), b"\xca" + bytes(4), b"\xd0\xff"])
def test_a_number_in_bytes_of_another_form_is_kept_encoded(body: bytes) -> None:
    """Else ``get_buffer`` and ``get_file`` would not return the bytes that were stored."""
    assert isinstance(PLAIN.decode(stored("msgpack", body)), (int, float))
    assert kept("msgpack", body) is NotImplemented


@given(st.sampled_from(sorted(KEPT)), st.binary(max_size=20))
def test_the_bytes_of_a_kept_value_can_be_made_again(codec: str, body: bytes) -> None:
    found = kept(codec, body)
    if found is not NotImplemented:
        encoded = PLAIN.encode(found)
        assert (encoded.codec, encoded.joined()) == (codec, body)


def test_values_of_other_codecs_are_kept_encoded() -> None:
    assert set(KEPT) == {"bytes", "text", "msgpack"}


# ---- bytes ------------------------------------------------------------------------------------

TEN = memoryview(bytes(range(10)))
Point16 = ctypes.c_uint16 * 3
BUFFERS = {
    "bytearray": bytearray(b"ab"),
    "no bytes": b"",
    "empty bytearray": bytearray(),
    "memoryview": memoryview(b"ab"),
    "every other byte": TEN[::2],
    "backwards": TEN[::-1],
    "two dimensions": TEN.cast("B", (2, 5)),
    "no dimension": memoryview(b"x").cast("B", ()),
    "nothing of something": TEN[3:3],
    "wide items": memoryview(array.array("d", [1.5, 2.5])),
    "every other wide item": memoryview(array.array("d", [1.5, 2.5, 3.5]))[::2],
    "a foreign format": memoryview(Point16(1, 2, 3)),
    "no item of a foreign format": memoryview((ctypes.c_uint16 * 0)()),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_short_buffers_come_back_as_bytes(name: str) -> None:
    value: Any = BUFFERS[name]
    assert PLAIN.encode(value).codec == "bytes"
    for kind in (private, shared):
        back = through(value, kind=kind)
        assert (type(back), back) == (bytes, bytes(value))


@pytest.mark.parametrize("size", [config.BYTES_MAX, config.BYTES_MAX + 1])
def test_long_bytes_in_shared_memory_stay_there(size: int) -> None:
    body = shared(bytes(size))
    value = PLAIN.decode(stored("bytes", body))
    assert value == body
    assert type(value) is (bytes if size <= config.BYTES_MAX else memoryview)


def test_each_reader_of_long_bytes_may_release_them() -> None:
    body = shared(bytes(config.BYTES_MAX + 1))
    one, other = (PLAIN.decode(stored("bytes", body)) for _ in range(2))
    assert isinstance(one, memoryview)
    assert isinstance(other, memoryview)
    one.release()
    assert other.readonly
    assert other[-1] == body[-1] == 0


def test_long_bytes_keep_their_memory_mapped() -> None:
    body = shared(bytes(config.BYTES_MAX + 1))
    memory: Any = body.obj
    value = PLAIN.decode(stored("bytes", body))
    body.release()
    with pytest.raises(BufferError):
        memory.close()
    del value
    memory.close()


def test_a_view_that_can_be_written_is_decoded_to_one_that_cannot() -> None:
    body = memoryview(bytearray(config.BYTES_MAX + 1))
    value = PLAIN.decode(stored("bytes", body))
    assert isinstance(value, memoryview)
    assert value.readonly


def test_bytes_are_the_same_object_on_both_ways() -> None:
    value = b"abc"
    encoded = PLAIN.encode(value)
    assert encoded.joined() is value
    assert PLAIN.decode(stored("bytes", value)) is value


@pytest.mark.parametrize(
    "name", ["bytearray", "memoryview", "two dimensions", "wide items", "a foreign format"]
)
def test_contiguous_buffers_are_encoded_without_a_copy(name: str) -> None:
    value: Any = BUFFERS[name]
    (part,) = checked(PLAIN.encode(value)).parts
    assert isinstance(part, memoryview)
    assert address(part) == address(memoryview(value))


def address(view: memoryview) -> int:
    numpy = pytest.importorskip("numpy")
    return int(numpy.asarray(view).ctypes.data)


def test_a_value_that_is_being_encoded_may_be_released() -> None:
    value = memoryview(bytearray(b"abc"))
    encoded = PLAIN.encode(value)
    value.release()
    assert encoded.joined() == b"abc"


def test_a_released_memoryview_is_refused() -> None:
    value = memoryview(b"abc")
    value.release()
    with pytest.raises(ValueError, match="released"):
        PLAIN.encode(value)


def test_the_repr_of_an_encoded_value_shows_its_size() -> None:
    assert repr(PLAIN.encode(bytearray(1000))) == "<Encoded bytes bytes=1000 parts=1>"


# ---- what is refused --------------------------------------------------------------------------


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
def test_a_value_whose_type_would_change_is_refused(value: object) -> None:
    advice = "cannot be stored; convert it to bytes, str.*Codec.*pickle=True"
    with pytest.raises(TypeError, match=advice):
        PLAIN.encode(value)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [2**70]])
def test_an_int_that_does_not_fit_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        PLAIN.encode(value)


@pytest.mark.parametrize("value", ["\udcff", ["\udcff"]])
def test_text_with_lone_surrogates_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        PLAIN.encode(value)


def test_a_value_nested_too_deeply_is_refused() -> None:
    value: list[Any] = []
    for _ in range(2000):
        value = [value]
    with pytest.raises(ValueError, match="cannot be stored"):
        PLAIN.encode(value)


@pytest.mark.parametrize("value", [msgpack.ExtType(1, b""), [msgpack.Timestamp(0, 0)]])
def test_types_of_msgpack_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be stored"):
        PLAIN.encode(value)


# ---- what strangers may have stored -----------------------------------------------------------


@given(st.sampled_from(["text", "msgpack"]), st.binary(), st.sampled_from([private, shared]))
def test_a_body_of_any_bytes_decodes_or_is_corrupt(
    name: str, body: bytes, kind: Callable[[bytes], Buffer]
) -> None:
    try:
        PLAIN.decode(stored(name, kind(body)))
    except ValueCorrupt:
        pass


def test_a_corrupt_value_says_why_and_has_a_cause() -> None:
    with pytest.raises(ValueCorrupt, match=r"does not decode as text: .*0xff") as caught:
        PLAIN.decode(stored("text", b"\xff"))
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)


def nested(kind: type, depth: int) -> Any:
    value: Any = kind()
    for _ in range(depth - 1):
        value = [value] if kind is list else (value,)
    return value


@pytest.mark.parametrize("kind", [list, tuple])
def test_nesting_is_bounded_and_needs_little_stack(kind: type) -> None:
    results: list[object] = []

    def work() -> None:
        deepest = nested(kind, DEPTH_MAX)
        results.append(through(deepest) == deepest)
        try:
            PLAIN.encode(nested(kind, DEPTH_MAX + 1))
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


def test_tuples_nested_too_deeply_are_corrupt() -> None:
    body = msgpack.packb([])
    for _ in range(DEPTH_MAX + 5):
        body = msgpack.packb([msgpack.ExtType(1, body)])
    assert "nested" in corrupt("msgpack", body)


def test_tuples_may_be_keys() -> None:
    assert through({(1, ("a", 2)): [(3,)]}) == {(1, ("a", 2)): [(3,)]}


# ---- content addresses ------------------------------------------------------------------------


def test_the_address_of_bytes_is_their_plain_blake3_hash() -> None:
    # the first test vector that the authors of BLAKE3 published: no input at all
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert content.address(content.digest("bytes", b"")) == "b3:" + empty


def test_the_same_bytes_of_another_codec_have_another_address() -> None:
    encoded = [PLAIN.encode(value) for value in (b"1", "1", 1)]
    assert encoded[0].joined() == encoded[1].joined()
    digests = {content.digest(each.codec, each.joined()) for each in encoded}
    assert len({content.address(digest) for digest in digests}) == 3
