"""The memory that decoding takes is bounded beforehand, for readers and writers alike."""

from __future__ import annotations

import contextlib
import gc
import itertools
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore import config
from dstore.codecs import MSGPACK, Codecs, budget
from dstore.codecs import plain as plain_codec
from dstore.errors import ValueCorrupt
from dstore.protocol.messages import Stored

SMALL = 80 << 10


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small bound, so that the hostile values of a test need not be large."""
    monkeypatch.setattr(budget, "DECODED_FREE", 256 << 10)


def array(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


def extension(data: bytes) -> bytes:
    return b"\xc9" + len(data).to_bytes(4, "big") + b"\x01" + data


def nested_tuples(depth: int, body: bytes) -> bytes:
    """Tuples inside one another, each of which has its contents packed once more."""
    for _ in range(depth):
        body = extension(b"\x91" + body)
    return body


def decode(body: bytes | memoryview) -> Any:
    return Codecs().decode(Stored(bytes(16), MSGPACK, body))


def flat(item: bytes, size: int = SMALL) -> bytes:
    return array(size // len(item)) + item * (size // len(item))


def binary(size: int) -> bytes:
    return b"\xc6" + size.to_bytes(4, "big") + bytes(size)


BOMBS = {
    "empty lists": flat(b"\x90"),
    "empty dicts": flat(b"\x80"),
    "dicts with one item": flat(b"\x81\x00\x90"),
    "dicts with a key of their own": array(SMALL // 8)
    + b"".join(b"\x81\xa4%04x\x80" % (number & 0xFFFF) for number in range(SMALL // 8)),
    "lists in lists": flat(b"\x91\x90"),
    "numbers of one byte": flat(b"\xe0"),
    "empty tuples": flat(b"\xd4\x01\x90"),
    "deep tuples": nested_tuples(90, binary(SMALL)),
    "claims": array(SMALL) * 90 + bytes(SMALL),
    "lists behind bytes": b"\x92" + binary(SMALL) + flat(b"\x90"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_a_value_that_would_take_too_much_memory_is_not_built(
    strict: None, name: str, kind: type
) -> None:
    body = kind(BOMBS[name])
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(ValueCorrupt, match="too many small items"):
            decode(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20  # with the names that it has met, and a row of numbers


@pytest.mark.parametrize("item", [[], {}, -7])
def test_a_value_that_could_not_be_read_is_not_written(strict: None, item: Any) -> None:
    with pytest.raises(ValueError, match="too many small items"):
        Codecs().encode([item] * SMALL)


HONEST: dict[str, Any] = {
    "small numbers": [number % 100 for number in range(100_000)],
    "floats": [number / 7 for number in range(20_000)],
    "numbers of all lengths": [number**3 - 5 for number in range(20_000)],
    "records": [{"id": n, "name": f"name {n}", "score": n / 7} for n in range(3_000)],
    "points": [{"x": n % 100, "y": n % 90} for n in range(20_000)],
    "pairs": [[n % 100, n % 90] for n in range(30_000)],
    "tuples": [(n % 100, n / 3) for n in range(8_000)],
    "words": [f"w{n % 100}" for n in range(30_000)],
    "numbered": {n: n / 3 for n in range(10_000)},
    "coordinates": {(n, -n): n for n in range(10_000)},
    "names": {f"n{n}": [n] for n in range(10_000)},
    "a grid": dict.fromkeys(itertools.product(range(-5, 6), repeat=4), 0),
    "nested": [[[[(n, [{"k": (n,)}])] for n in range(20)]] * 20] * 15,
    "deep": None,
}
for _ in range(99):
    HONEST["deep"] = [HONEST["deep"], (1, "x" * 700)]


@pytest.mark.parametrize("name", HONEST)
def test_ordinary_values_pass(name: str) -> None:
    body = Codecs().encode(HONEST[name]).joined()
    assert len(body) > budget.CHECKED_MIN
    for sound in (False, True):
        value = Codecs().decode(Stored(bytes(16), MSGPACK, body), sound=sound)
        same = value == HONEST[name]
        assert same  # and pytest is not to show them


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=40)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(
            st.integers().filter(lambda n: abs(n) < 2**63) | st.text(max_size=5), inner
        )
    ),
    max_leaves=40,
)


@given(plain)
def test_any_value_is_scanned_to_its_end(value: Any) -> None:
    body = Codecs().encode(value).joined() if not isinstance(value, (str, bytes)) else b"\xc0"
    budget.check(body)
    with pytest.raises(ValueError, match="ends"):
        budget.check(body[:-1])
    with pytest.raises(ValueError, match="ends"):
        budget.check(body + b"\xc0")


@given(st.binary(max_size=60))
def test_any_bytes_are_scanned_or_refused(body: bytes) -> None:
    try:
        budget.check(body)
    except ValueError:
        return
    with contextlib.suppress(ValueCorrupt):  # it does not look at UTF-8, nor at keys
        decode(body)


def real_bytes(body: bytes) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        value = decode(body)
        taken, _ = tracemalloc.get_traced_memory()
        del value
    finally:
        tracemalloc.stop()
    return taken


@pytest.mark.long
@pytest.mark.parametrize("name", HONEST)
def test_the_computed_memory_is_what_decoding_takes(name: str) -> None:
    body = Codecs().encode(HONEST[name]).joined()
    expected = budget.decoded_size(body, 1 << 60)
    taken = min(real_bytes(body) for _ in range(3))  # other threads may take some meanwhile
    assert expected > 0.8 * taken


def test_the_bound_is_what_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (config.DECODED_FACTOR, config.DECODED_FREE) == (24, 64 << 20)
    body = flat(b"\x90")
    free = budget.decoded_size(body, 1 << 60) - config.DECODED_FACTOR * len(body)
    monkeypatch.setattr(budget, "DECODED_FREE", free)
    decode(body)
    monkeypatch.setattr(budget, "DECODED_FREE", free - 1)
    with pytest.raises(ValueCorrupt, match="too many small items"):
        decode(body)


@pytest.mark.parametrize(
    "stamp", [b"\xd6\xff" + bytes(4), b"\xd7\xff" + bytes(8), b"\xc7\x0c\xff" + bytes(12)]
)
def test_a_timestamp_is_no_value(stamp: bytes) -> None:
    for body in (
        stamp,
        b"\x92\x01" + stamp,
        b"\x81" + stamp + b"\x01",
        array(2) + flat(b"\x01") + stamp,
    ):
        with pytest.raises(ValueCorrupt, match="unknown extension type 255"):
            decode(body)
    assert decode(b"\x91\xc4\x02\xd6\xff") == [b"\xd6\xff"]  # these are bytes


# ---- keys ---------------------------------------------------------------------------------------


COLLIDING = list(itertools.product((-1, -2), repeat=9))
"""512 tuples with the same hash."""


@pytest.mark.parametrize("inside", [False, True])
def test_keys_with_one_hash_are_refused(inside: bool) -> None:
    assert len({hash(key) for key in COLLIDING}) == 1
    value: Any = dict.fromkeys(COLLIDING, 0)
    body = Codecs().encode([(1, value)] if inside else value).joined()
    with pytest.raises(ValueCorrupt, match="the same hash"):
        decode(body)


def test_a_few_keys_with_one_hash_are_accepted() -> None:
    value = dict.fromkeys([*COLLIDING[: plain_codec.SAME_HASH_MAX], *range(100)], 0)
    same = decode(Codecs().encode(value).joined()) == value
    assert same


def test_numbers_with_one_hash_are_refused() -> None:
    floats = [float(2**61) ** n for n in range(1, 17)] + [2.0 ** (61 * n) for n in range(-17, 0)]
    assert len({hash(number) for number in floats}) == 1
    many: list[float] = [*range(2, 200), *floats]
    body = msgpack.packb(dict.fromkeys(many))
    assert len(floats) > plain_codec.SAME_HASH_MAX
    with pytest.raises(ValueCorrupt, match="the same hash"):
        decode(body)


def test_keys_that_collide_in_the_table_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = dict.fromkeys(range(3 * plain_codec.STEP_KEYS), 0)
    body = Codecs().encode(value).joined()
    same = decode(body) == value
    assert same
    clock = itertools.count(
        0.0, 2 * plain_codec.STEP_KEYS * plain_codec.SECONDS_PER_KEY + plain_codec.SECONDS_FREE
    )
    monkeypatch.setattr(plain_codec, "thread_time", lambda: next(clock))
    with pytest.raises(ValueCorrupt, match="collide"):
        decode(body)


@pytest.mark.parametrize("key", [[], {}, [1], {1: 2}])
def test_a_key_without_a_hash_is_refused(key: Any) -> None:
    for many in (1, 100):
        body = b"\xde\x00" + bytes([many]) + (msgpack.packb(key) + b"\x01") * many
        with pytest.raises(ValueCorrupt, match="unhashable"):
            decode(body)
