"""Content addresses: keys that are the BLAKE3 hash of their value.

The address of bytes is what ``b3sum`` prints for a file with these bytes. Values of other codecs
are hashed with the codec's name as BLAKE3's key-derivation context, so that ``b"1"``, ``"1"`` and
``1`` have three addresses. The same hash is the digest with which a large value is checked after
each transfer.

An address is :data:`~dstore.config.CONTENT_PREFIX` and the hash in hex. An identity that sees only
the keys below a prefix has its addresses there.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from dstore.config import CONTENT_PREFIX
from dstore.protocol.messages import Buffer, Key, Large, Stored

_PLAIN_CODEC = "bytes"
"""Where an address begins in a key, from its end."""


class Hasher:
    """Hashes a value piece by piece, in one thread: a pool of threads would not survive a fork."""

    def __init__(self, codec: str) -> None:
        plain = codec == _PLAIN_CODEC
        self._hash = blake3() if plain else blake3(derive_key_context=f"dstore {codec}")

    def update(self, data: Buffer) -> None:
        self._hash.update(data)

    def digest(self) -> bytes:
        """Return the hash of all pieces so far, 32 bytes."""
        return self._hash.digest()


def digest(codec: str, body: Buffer) -> bytes:
    """Return the hash of a whole value, 32 bytes."""
    hasher = Hasher(codec)
    hasher.update(body)
    return hasher.digest()


def address(digest: bytes, prefix: Key = "") -> Key:
    """Return the content address of the value with this digest, below a prefix."""
    return prefix + CONTENT_PREFIX + digest.hex()


class Addresses:
    """Which keys are content addresses for an identity with these prefixes, and of what.

    They begin with ``b3:``, or with one of the prefixes and then ``b3:``. All such keys are
    addresses, also those that are the address of no value: none can be bound to anything else.
    """

    __slots__ = ("_begins", "_prefix")

    def __init__(self, prefixes: Sequence[Key] = ()) -> None:
        self._prefix = prefixes[0] if prefixes else ""
        self._begins = (CONTENT_PREFIX, *(prefix + CONTENT_PREFIX for prefix in prefixes))

    def __contains__(self, key: Key) -> bool:
        return key.startswith(self._begins)

    def of(self, digest: bytes) -> Key:
        """Return the address of the value with this digest, below the first prefix."""
        return address(digest, self._prefix)

    def matches(self, key: Key, stored: Stored) -> bool:
        """Whether ``stored`` may be bound to ``key``: not if the key is another value's address.

        For a large value its digest counts, with which its bytes are compared after each transfer.
        """
        if key not in self:
            return True
        body = stored.body
        if isinstance(body, Large):
            hashed = body.digest
        elif stored.codec.isascii():
            hashed = digest(stored.codec, body)
        else:
            return False
        return key in [begin + hashed.hex() for begin in self._begins]


PLAIN = Addresses()
"""The content addresses for an identity without prefixes."""
