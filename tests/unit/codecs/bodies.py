"""Values through the codecs, over both kinds of bodies."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import pytest

from dstore.codecs import Buffer, Codecs, Encoded
from dstore.errors import ValueCorrupt
from dstore.protocol.messages import Stored

PLAIN = Codecs()
PICKLING = Codecs(pickle=True)


def shared(body: bytes) -> memoryview:
    """The body in memory that other processes might read too, and nobody can write."""
    memory = mmap.mmap(-1, max(1, len(body)))
    memory[: len(body)] = body
    return memoryview(memory)[: len(body)].toreadonly()


def private(body: bytes) -> bytes:
    return body


KINDS = [pytest.param(private, id="bytes"), pytest.param(shared, id="memoryview")]
"""For tests that take the body as bytes and as a memoryview."""


def stored(codec: str, body: Buffer) -> Stored:
    return Stored(bytes(16), codec, body)


def through(
    value: object, codecs: Codecs = PLAIN, kind: Callable[[bytes], Buffer] = private
) -> tuple[Any, bool]:
    """What comes back of a value, and whether that may be kept."""
    encoded = checked(codecs.encode(value))
    return codecs.decode(stored(encoded.codec, kind(encoded.joined())))


def checked(encoded: Encoded) -> Encoded:
    """The same, after a look at what all codecs have to keep to."""
    for part in encoded.parts:
        if type(part) is not bytes:
            assert type(part) is memoryview
            assert (part.ndim, part.format, part.c_contiguous) == (1, "B", True)
    assert encoded.size == sum(map(len, encoded.parts)) == len(encoded.joined())
    return encoded


def corrupt(codec: str, body: Buffer, codecs: Codecs = PLAIN) -> str:
    """Why this body is corrupt. Fails if it is not."""
    with pytest.raises(ValueCorrupt) as caught:
        codecs.decode(stored(codec, body))
    return str(caught.value)
