"""Offers: how Locals and Global find out that a value is still the same, without sending it."""

from __future__ import annotations

from hashlib import blake2b

from dstore.protocol.messages import Buffer, Large

DIGEST_BYTES = 16
OFFER_KEYS_MAX = 256
"""Keys in one offer, so that Global has it answered in less than a millisecond."""
OFFER_BYTES_MAX = 1 << 18
"""Bytes of values of one offer; Global looks at no more. A large value counts with its digest."""
LARGE_VALUES = b"large"
"""Sets the digests of large values apart, as the ``person`` of BLAKE2: no small value has one."""


def weight(body: Buffer | Large) -> int:
    """Return how many bytes of a value Global looks at when the value is offered."""
    return len(body.digest) if isinstance(body, Large) else len(body)


def digest(epoch: int, session: int, codec: str, body: Buffer | Large) -> bytes:
    """Return the digest of a value, for an offer in this session.

    It is keyed with the session (BLAKE2, RFC 7693), so that nobody can prepare two values that have
    the same one. Of a large value its size and its content digest stand for its bytes, which are
    not read.
    """
    key = epoch.to_bytes(8, "big") + session.to_bytes(8, "big")
    person = LARGE_VALUES if isinstance(body, Large) else b""
    hashed = blake2b(codec.encode(), digest_size=DIGEST_BYTES, key=key, person=person)
    hashed.update(b"\0")
    if isinstance(body, Large):
        hashed.update(body.size.to_bytes(8, "big"))
        hashed.update(body.digest)
    else:
        hashed.update(body)
    return hashed.digest()
