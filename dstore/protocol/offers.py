"""Offers: how Locals and Global find out that a value is still the same, without sending it."""

from __future__ import annotations

from hashlib import blake2b

from dstore.protocol.messages import Buffer

DIGEST_BYTES = 16
OFFER_KEYS_MAX = 256
"""Keys in one offer, so that Global has it answered in less than a millisecond."""
OFFER_BYTES_MAX = 1 << 18
"""Bytes of values of one offer; Global looks at no more."""


def digest(epoch: int, session: int, codec: str, body: Buffer) -> bytes:
    """Return the digest of a value, for an offer in this session.

    It is keyed with the session (BLAKE2, RFC 7693), so that nobody can prepare two values that have
    the same one.
    """
    key = epoch.to_bytes(8, "big") + session.to_bytes(8, "big")
    hashed = blake2b(codec.encode(), digest_size=DIGEST_BYTES, key=key)
    hashed.update(b"\0")
    hashed.update(body)
    return hashed.digest()
