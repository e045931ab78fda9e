"""The hash that places a key in the invalidation vector and in the host cache of its host."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from dstore.compiled import native
from dstore.protocol.keys import to_bytes

HASH_BYTES = 8
HASH_KEY_BYTES = 16


class KeyHash:
    """Hashes keys: BLAKE2b of 8 bytes with a secret key of 16, as a number, little end first.

    It is the same in all processes of a host. Programs cannot foresee which keys share a bucket.
    Where :mod:`dstore._native` is there, its class of the same name takes this one's place.
    """

    __slots__ = ("_keyed",)

    def __init__(self, hash_key: bytes) -> None:
        if len(hash_key) != HASH_KEY_BYTES:
            raise ValueError(f"the key of the hash has {HASH_KEY_BYTES} bytes, not {len(hash_key)}")
        self._keyed = blake2b(digest_size=HASH_BYTES, key=hash_key)

    def __call__(self, key: str) -> int:
        state = self._keyed.copy()
        state.update(to_bytes(key))
        return int.from_bytes(state.digest(), "little")


PureKeyHash = KeyHash
if not TYPE_CHECKING and native is not None and hasattr(native, "KeyHash"):
    KeyHash = native.KeyHash
