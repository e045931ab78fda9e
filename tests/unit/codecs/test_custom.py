"""Codecs of a user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dstore.codecs import Buffer, Codec, Codecs
from dstore.errors import ValueCorrupt
from tests.unit.codecs.bodies import KINDS, checked, stored, through


class Picture:
    """A type of a user's own: bytes with a title."""

    def __init__(self, title: str, pixels: Any) -> None:
        self.title = title
        self.pixels = pixels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Painting(Picture):
    pass


def packed(picture: Picture) -> list[bytes | bytearray]:
    return [picture.title.encode(), b"\0", picture.pixels]


def unpacked(body: memoryview) -> Picture:
    title = bytes(body).index(0)
    return Picture(bytes(body[:title]).decode(), body[title + 1 :])


PICTURES = Codec("picture", Picture, packed, unpacked)
CODECS = Codecs([PICTURES])
SUNSET = Picture("sunset", bytearray(range(100)))


def encoding_to(given: object) -> Codecs:
    return Codecs([PICTURES._replace(encode=lambda _: given)])  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_a_user_s_type_comes_back(kind: Callable[[bytes], Buffer]) -> None:
    assert CODECS.encode(SUNSET).codec == "picture"
    assert through(SUNSET, CODECS, kind) == SUNSET


@pytest.mark.parametrize("kind", KINDS)
def test_decode_gets_a_read_only_view(kind: Callable[[bytes], Buffer]) -> None:
    pixels = through(SUNSET, CODECS, kind).pixels
    assert (pixels.readonly, pixels.format, pixels.ndim) == (True, "B", 1)


def test_the_parts_are_views_of_the_value() -> None:
    parts = checked(CODECS.encode(SUNSET)).parts
    assert parts[:2] == (b"sunset", b"\0")
    SUNSET.pixels[0] ^= 0xFF
    assert parts[2] == SUNSET.pixels


def test_a_value_is_decoded_for_each_read() -> None:
    body = stored("picture", CODECS.encode(SUNSET).joined())
    assert CODECS.decode(body) is not CODECS.decode(body)


@pytest.mark.parametrize(
    ("given", "body"),
    [
        (b"ab", b"ab"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"aXbX")[::2], b"ab"),
        (memoryview(b"abcd").cast("H"), b"abcd"),
        ([], b""),
        ([b"", b"ab"], b"ab"),
        ((b"a", bytearray(b"b"), memoryview(b"c")), b"abc"),
    ],
)
def test_encode_returns_bytes_or_a_list_of_them(given: object, body: bytes) -> None:
    assert checked(encoding_to(given).encode(SUNSET)).joined() == body


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "NoneType"),
        ("ab", "str"),
        ("", "str"),
        ([b"a", "b"], "str"),
        (range(2), "int"),
        (1, "int"),
    ],
)
def test_encode_that_returns_something_else_is_an_error(given: object, named: str) -> None:
    with pytest.raises(TypeError, match=f"codec 'picture' gave {named}; it is to return bytes"):
        encoding_to(given).encode(SUNSET)


@pytest.mark.parametrize("pickle", [False, True])
def test_an_exception_of_encode_is_raised(pickle: bool) -> None:
    def encode(_: Picture) -> bytes:
        raise ValueError("too dark")

    with pytest.raises(ValueError, match=r"^too dark$"):
        Codecs([PICTURES._replace(encode=encode)], pickle=pickle).encode(SUNSET)


def test_an_exception_of_decode_is_a_corrupt_value() -> None:
    with pytest.raises(ValueCorrupt, match="does not decode as picture: subsection") as caught:
        CODECS.decode(stored("picture", b"no end of the title"))
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("value", [Painting("a", b""), [SUNSET], {"a": SUNSET}])
def test_a_codec_takes_its_own_type_only_and_whole_values(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be stored"):
        CODECS.encode(value)


def test_a_codec_comes_before_pickle() -> None:
    both = Codecs([PICTURES], pickle=True)
    assert both.encode(SUNSET).codec == "picture"
    assert both.encode(Painting("a", b"")).codec == "pickle"
