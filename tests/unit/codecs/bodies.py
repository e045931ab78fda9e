"""Helpers of the codec tests: values encoded and decoded, from both kinds of bodies."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import pytest

from dstore.codecs import KEPT, Buffer, Codecs, Encoded
from dstore.errors import ValueCorrupt
from dstore.protocol.messages import Stored

PLAIN = Codecs()
PICKLING = Codecs(pickle=True)


def shared(body: bytes) -> memoryview:
    """The body as a read-only view, like one of memory that other processes read too."""
    memory = mmap.mmap(-1, max(1, len(body)))
    memory[: len(body)] = body
    return memoryview(memory)[: len(body)].toreadonly()


def private(body: bytes) -> bytes:
    return body


KINDS = [pytest.param(private, id="bytes"), pytest.param(shared, id="memoryview")]
"""For tests of a body that is bytes, and of one that is a memoryview."""


def stored(codec: str, body: Buffer) -> Stored:
    return Stored(bytes(16), codec, body)


def through(
    value: object, codecs: Codecs = PLAIN, kind: Callable[[bytes], Buffer] = private
) -> Any:
    """A value encoded and decoded again."""
    encoded = checked(codecs.encode(value))
    return codecs.decode(stored(encoded.codec, kind(encoded.joined())))


def kept(codec: str, body: bytes) -> object:
    """Return what the entry of a cache has as its value: decoded, or NotImplemented."""
    decode = KEPT.get(codec)
    return NotImplemented if decode is None else decode(body)


def checked(encoded: Encoded) -> Encoded:
    """Return an encoded value after a check of the rules of all codecs."""
    for part in encoded.parts:
        if type(part) is not bytes:
            assert type(part) is memoryview
            assert (part.ndim, part.format, part.c_contiguous) == (1, "B", True)
    assert encoded.size == sum(map(len, encoded.parts)) == len(encoded.joined())
    return encoded


def corrupt(codec: str, body: Buffer, codecs: Codecs = PLAIN) -> str:
    """The message of ValueCorrupt for this body. Fails if it is decoded."""
    with pytest.raises(ValueCorrupt) as caught:
        codecs.decode(stored(codec, body))
    return str(caught.value)
