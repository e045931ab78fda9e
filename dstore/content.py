"""Content addresses: keys that are the BLAKE3 hash of their value.

The address of bytes is what ``b3sum`` prints for a file of them. Values of other codecs are
hashed with the codec's name as BLAKE3's key-derivation context, so that ``b"1"``, ``"1"`` and
``1`` have three addresses.
"""

from __future__ import annotations

from blake3 import blake3

from dstore.config import CONTENT_PREFIX
from dstore.messages import Key, Stored

_PLAIN_CODEC = "bytes"


def address(codec: str, body: bytes) -> Key:
    """The content address of a value."""
    if codec == _PLAIN_CODEC:
        return CONTENT_PREFIX + blake3(body).hexdigest()
    return CONTENT_PREFIX + blake3(body, derive_key_context=f"dstore {codec}").hexdigest()


def is_address(key: Key) -> bool:
    """Whether the key is one that only a value's content may be bound to."""
    return key.startswith(CONTENT_PREFIX)


def matches(key: Key, stored: Stored) -> bool:
    """Whether ``stored`` may be bound to ``key``: always, unless the key is another's address."""
    if not is_address(key):
        return True
    return stored.codec.isascii() and key == address(stored.codec, stored.body)
