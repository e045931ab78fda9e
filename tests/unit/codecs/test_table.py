"""The codecs of a Node, and the choice of one for a value."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from dstore.codecs import Codec, Codecs
from dstore.errors import DstoreError, UnknownCodec, ValueCorrupt
from dstore.protocol.messages import Large, Stored
from tests.unit.codecs.bodies import PICKLING, PLAIN, stored, through


def text_of(value: object) -> bytes:
    return str(value).encode()


def fraction_of(body: memoryview) -> Fraction:
    return Fraction(bytes(body).decode())


FRACTIONS = Codec("fraction", Fraction, text_of, fraction_of)
BOTH = Codecs([FRACTIONS], pickle=True)


def test_a_table_shows_what_it_has() -> None:
    assert repr(PLAIN) == "<Codecs bytes text msgpack ndarray>"
    assert repr(BOTH) == "<Codecs bytes text msgpack ndarray pickle fraction>"


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        (b"a", "bytes"),
        ("a", "text"),
        (1, "msgpack"),
        ([b"a", ("a", None)], "msgpack"),
        (Fraction(1, 3), "fraction"),
        ([Fraction(1, 3)], "pickle"),
        ({1, 2}, "pickle"),
        (2**64, "pickle"),
        ([2**64], "pickle"),
        ("\udcff", "pickle"),
    ],
)
def test_a_value_takes_the_first_codec_for_its_type(value: object, codec: str) -> None:
    assert BOTH.encode(value).codec == codec
    assert through(value, BOTH) == value


def test_without_pickle_nothing_is_pickled() -> None:
    with pytest.raises(TypeError, match="Fraction cannot be stored"):
        PLAIN.encode(Fraction(1, 3))


@pytest.mark.parametrize(
    ("codec", "advice"),
    [("pickle", r"create the Node with pickle=True"), ("fraction", "pass that codec to the Node")],
)
def test_an_unknown_codec_is_named_with_advice(codec: str, advice: str) -> None:
    with pytest.raises(UnknownCodec, match=f"'{codec}', which is not here; {advice}") as caught:
        PLAIN.decode(stored(codec, b""))
    assert caught.value.codec == codec
    assert isinstance(caught.value, DstoreError)
    assert not isinstance(caught.value, ValueCorrupt)


def test_the_description_of_a_large_value_is_not_decoded() -> None:
    with pytest.raises(TypeError, match="fetch them first"):
        PLAIN.decode(Stored(bytes(16), "bytes", Large(1, bytes(32))))


# ---- what is no codec -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bytes", "text", "msgpack", "ndarray", "pickle", "damaged"])
def test_our_names_are_taken(name: str) -> None:
    for pickle in (False, True):
        with pytest.raises(ValueError, match=f"^'{name}' is a name of dstore's own; choose"):
            Codecs([FRACTIONS._replace(name=name)], pickle=pickle)


@pytest.mark.parametrize("name", ["", "x" * 65, "naïve", "a\n", "a\0b"])
def test_a_name_is_printable_and_short(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 printable ASCII"):
        Codecs([FRACTIONS._replace(name=name)])


def test_our_types_are_taken() -> None:
    for kind in (
        bytes,
        bytearray,
        memoryview,
        str,
        type(None),
        bool,
        int,
        float,
        list,
        tuple,
        dict,
    ):
        with pytest.raises(ValueError, match=f"dstore has a codec for {kind.__name__}"):
            Codecs([FRACTIONS._replace(type=kind)])


def test_arrays_are_taken() -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(ValueError, match="dstore has a codec for ndarray"):
        Codecs([FRACTIONS._replace(type=numpy.ndarray)])


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (FRACTIONS._replace(type=set), "name 'fraction'"),
        (FRACTIONS._replace(name="fraction2"), "type Fraction"),
    ],
)
def test_two_codecs_do_not_share_a_name_or_a_type(second: Codec, reason: str) -> None:
    with pytest.raises(ValueError, match=f"there are two codecs (with|for) the {reason}"):
        Codecs([FRACTIONS, second])


@pytest.mark.parametrize(
    ("codec", "reason"),
    [
        (("fraction", Fraction, text_of, fraction_of), "a list of dstore.Codec, and has .*tuple"),
        (FRACTIONS._replace(name=b"fraction"), "the name of a codec is a str, not b'fraction'"),  # type: ignore[arg-type]
        (
            FRACTIONS._replace(type="Fraction"),  # type: ignore[arg-type]
            "type of the codec 'fraction' is a class, not 'Fraction'",
        ),
        (FRACTIONS._replace(encode=None), "encode of the codec 'fraction' is a function, not None"),  # type: ignore[arg-type]
        (FRACTIONS._replace(decode=b""), "decode of the codec 'fraction' is a function"),  # type: ignore[arg-type]
    ],
)
def test_a_malformed_codec_is_refused(codec: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        Codecs([codec])


def test_a_single_codec_is_not_a_list_of_codecs() -> None:
    with pytest.raises(TypeError, match=r"a list of dstore.Codec, and has 'fraction' in it"):
        Codecs(FRACTIONS)  # type: ignore[arg-type]


def test_the_refusal_of_a_value_that_can_be_pickled_is_forgotten() -> None:
    with pytest.raises(TypeError, match="cannot be pickled") as caught:
        PICKLING.encode(lambda: None)
    assert caught.value.__context__ is caught.value.__cause__
