"""A key is bytes, with one name in Python, whatever object of text or bytes it is made of."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dstore
from dstore.client import translate
from dstore.config import KEY_BYTES_MAX
from dstore.protocol import keys, wire
from dstore.protocol.messages import Get

raw_keys = st.one_of(
    st.binary(min_size=1, max_size=KEY_BYTES_MAX),
    st.text(min_size=1, max_size=127).map(lambda text: text.encode("utf-8", "ignore") or b"k"),
    st.lists(  # bytes that nearly make characters
        st.sampled_from([b"\xc3", b"\xa9", b"a", b"\xe6\xbc\xa2", b"\xf0\x9f", b"\xed\xb3\xbf"]),
        min_size=1,
        max_size=9,
    ).map(b"".join),
)


class Disguised(str):
    """Text that says of itself whatever it likes."""

    def _other(self, *_: Any, **__: Any) -> Any:
        return "other"

    __str__ = __repr__ = __format__ = encode = __getitem__ = __iter__ = __add__ = _other
    isascii = startswith = _other
    __len__ = __hash__ = lambda self: 5
    __eq__ = lambda self, other: True  # noqa: E731


class DisguisedBytes(bytes):
    def _other(self, *_: Any, **__: Any) -> Any:
        return "other"

    __str__ = __repr__ = __bytes__ = decode = __getitem__ = __iter__ = startswith = _other
    __len__ = __hash__ = lambda self: 5
    __eq__ = lambda self, other: True  # noqa: E731


class Named(str, enum.Enum):
    CONFIG = "config/a"


@given(raw_keys)
def test_bytes_and_every_text_of_them_are_one_key(raw: bytes) -> None:
    name = translate.key_text(raw)
    assert type(name) is str
    assert keys.to_bytes(name) == raw
    assert keys.from_bytes(raw) == name
    one_by_one = "".join(chr(b if b < 0x80 else 0xDC00 + b) for b in raw)
    escaped = raw.decode("ascii", "surrogateescape")
    assert one_by_one == escaped
    for text in (name, escaped, Disguised(name), Disguised(escaped), DisguisedBytes(raw)):
        found = translate.key_text(text)
        assert (type(found), found) == (str, name)
    public = keys.public(name)
    assert translate.key_text(public) == name
    assert type(public) in (str, bytes)
    assert isinstance(public, bytes) == (not _is_utf8(raw))


@given(st.lists(raw_keys, min_size=1, max_size=9))
def test_what_travels_arrives_as_the_same_name(raws: list[bytes]) -> None:
    names = [translate.key_name(raw) for raw in raws if len(raw) <= KEY_BYTES_MAX]
    arrived = wire.decode_to_global(wire.encode(Get(1, 1, 1, names)))
    assert isinstance(arrived, Get)
    assert arrived.keys == names


@given(raw_keys, raw_keys)
def test_names_in_order_compare_as_bytes_do(one: bytes, other: bytes) -> None:
    first, second = (keys.in_order(keys.from_bytes(raw)) for raw in (one, other))
    assert (first < second) == (one < other)
    for end in range(len(one) + 1):
        prefix = keys.in_order(keys.from_bytes(one[:end]))
        assert second.startswith(prefix) == other.startswith(one[:end])
    assert keys.to_bytes(keys.from_order(first)) == one


def test_the_order_of_ascii_keys_needs_no_copies() -> None:
    key = "models/a"
    assert keys.in_order(key) is key


def test_an_enum_is_the_text_of_its_value() -> None:
    name = translate.key_name(Named.CONFIG)
    assert (type(name), name) == (str, "config/a")


class Liar:
    """What a mock with ``spec=str`` does."""

    __class__ = str  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("", "the key is empty; a key has 1 to 511 bytes"),
        (b"", "the key is empty; a key has 1 to 511 bytes"),
        ("x" * 512, "512 bytes, and a key has at most 511; shorten it, or take a hash"),
        ("ä" * 256, "512 bytes, and a key has at most 511; shorten it, or take a hash"),
        (b"\xff" * 600, "600 bytes"),
        ("ab\ud800", r"U\+D800, half of a character, at index 2, .*; correct the text, or give"),
        ("\udfff", r"U\+DFFF"),
        (5, r"text or bytes \(str or bytes\), not int"),
        (None, "not NoneType"),
        (("a",), "not tuple"),
        (bytearray(b"a"), r"not bytearray; give bytes\(key\)"),
        (memoryview(b"a"), r"not memoryview; give bytes\(key\)"),
        (Liar(), "not Liar"),
    ],
    ids=lambda each: repr(each).partition(" at ")[0][:20],
)
def test_a_bad_key_is_told_what_is_wrong_and_what_to_do(key: Any, said: str) -> None:
    with pytest.raises(dstore.InvalidKey, match=said) as refused:
        translate.key_name(key)
    assert ("a hash of it" in str(refused.value)) == ("at most" in str(refused.value))


def test_a_content_address_is_refused_by_name_and_with_what_to_do_in_each_place() -> None:
    with pytest.raises(dstore.InvalidKey, match=r"'b3:x' begins with 'b3:'.*put.*dstore put.*ADD"):
        translate.settable("b3:x")


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
