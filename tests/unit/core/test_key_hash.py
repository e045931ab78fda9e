"""The hash of keys: one contract for both twins, which is that of hashlib."""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Any

import pytest

from dstore.config import KEY_BYTES_MAX
from dstore.core.local import key_hash
from dstore.core.local.vector import Vector

HASH_KEY = bytes(range(16))


def native() -> Any:
    try:
        import dstore._native as found  # type: ignore[import-not-found]
    except ImportError:
        pytest.skip("the compiled part is not built")
    return found.KeyHash


@pytest.fixture(params=[lambda: key_hash.PureKeyHash, native], ids=["pure", "native"])
def made(request: pytest.FixtureRequest) -> Any:
    return request.param()


def expected(raw: bytes, hash_key: bytes = HASH_KEY) -> int:
    return int.from_bytes(blake2b(raw, digest_size=8, key=hash_key).digest(), "little")


def test_keys_of_each_length(made: Any) -> None:
    rng = random.Random(1)
    hashed = made(HASH_KEY)
    for length in range(KEY_BYTES_MAX + 1):
        raw = bytes(rng.choices(range(128), k=length))
        assert hashed(raw.decode()) == expected(raw), length
        raw = rng.randbytes(length)
        assert hashed(raw.decode("utf-8", "surrogateescape")) == expected(raw), length


@pytest.mark.parametrize("key", ["", "ü", "漢字" * 40, "\U0001f600", "a\0b", "ÿ" * 64])
def test_keys_of_each_kind_of_text(made: Any, key: str) -> None:
    for hash_key in (HASH_KEY, bytes(16), b"\xff" * 16):
        assert made(hash_key)(key) == expected(key.encode(), hash_key)


def test_the_low_bits_are_the_bucket_of_an_invalidation(made: Any) -> None:
    vector = Vector(HASH_KEY, 1 << 17)
    assert all(vector.bucket(key) == made(HASH_KEY)(key) & 0x1FFFF for key in ("a", "é", "k" * 300))


def test_what_is_no_key_is_refused(made: Any) -> None:
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        made(HASH_KEY[:15])
    with pytest.raises((TypeError, AttributeError)):
        made(HASH_KEY)(b"bytes")
    with pytest.raises(UnicodeEncodeError):
        made(HASH_KEY)("\ud800")  # not one of the surrogates that stand for a byte
