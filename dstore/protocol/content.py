"""Content addresses: keys that are the BLAKE3 hash of their value.

The address of bytes is what ``b3sum`` prints for a file with these bytes. Values of other codecs
are hashed with the codec's name as BLAKE3's key-derivation context, so that ``b"1"``, ``"1"`` and
``1`` have three addresses. The same hash is the digest with which a large value is checked after
each transfer.
"""

from __future__ import annotations

from blake3 import blake3

from dstore.config import CONTENT_PREFIX
from dstore.protocol.messages import Buffer, Key, Large, Stored

_PLAIN_CODEC = "bytes"


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


def is_address(key: Key) -> bool:
    return key.startswith(CONTENT_PREFIX)


def matches(key: Key, stored: Stored) -> bool:
    """Whether ``stored`` may be bound to ``key``: not if the key is another value's address.

    For a large value its digest counts, with which its bytes are compared after each transfer.
    """
    if not key.startswith(CONTENT_PREFIX):
        return True
    body = stored.body
    if isinstance(body, Large):
        return key == address(body.digest)
    return stored.codec.isascii() and key == address(digest(stored.codec, body))
