"""Which keys of the host cache a process remembers to have read: in Python, and compiled."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dstore.compiled import native
from dstore.core.local.key_hash import KeyHash
from dstore.core.local.membership import Membership
from dstore.core.local.shared import (
    SEEN_AGE,
    SEEN_FIRST,
    SEEN_HEAD,
    SEEN_LAST,
    SEEN_SLOTS,
    Seen,
)
from dstore.shm.layout import SIZE_MIN, Layout
from dstore.shm.table import Table

HASH_KEY = bytes(16)


def hashes(count: int, seed: int = 1) -> list[int]:
    dice = random.Random(seed)
    return [dice.getrandbits(64) for _ in range(count)]


def test_a_key_is_seen_from_its_second_read_on() -> None:
    seen = Seen()
    (hashed,) = hashes(1)
    assert [seen.again(hashed) for _ in range(3)] == [False, True, True]


def test_keys_that_are_read_in_turns_are_all_seen() -> None:
    seen, keys = Seen(), hashes(SEEN_AGE)
    for hashed in keys:
        seen.again(hashed)
    assert all(seen.again(hashed) for hashed in keys)


def test_what_was_read_long_ago_is_forgotten() -> None:
    seen, keys = Seen(), hashes(5 * SEEN_AGE)
    for hashed in keys:
        seen.again(hashed)
    again = sum(seen.again(hashed) for hashed in keys[:SEEN_AGE])
    assert again < SEEN_AGE / 2


def test_few_keys_are_taken_for_others() -> None:
    seen = Seen()
    wrong = sum(seen.again(hashed) for hashed in hashes(10 * SEEN_AGE))
    assert wrong < 10 * SEEN_AGE * 3 / 8


def test_the_last_age_is_followed_by_a_first_one() -> None:
    seen = Seen()
    seen.slots[0] = SEEN_LAST
    for hashed in hashes(2 * SEEN_AGE):
        seen.again(hashed)
    assert SEEN_FIRST < seen.slots[0] < SEEN_FIRST + 4
    (hashed,) = hashes(1, seed=2)
    assert [seen.again(hashed) for _ in range(2)][1]


@pytest.mark.skipif(native is None, reason="there is no compiled part")
@pytest.mark.parametrize("age", [SEEN_FIRST, SEEN_LAST])
def test_the_compiled_reader_remembers_the_same(age: int) -> None:
    assert native is not None
    table = Table.over(bytearray(Layout.of(8 * SIZE_MIN).total), 8 * SIZE_MIN)
    hash_of = KeyHash(HASH_KEY)
    dice = random.Random(3)
    keys = [f"k{dice.randrange(3 * SEEN_AGE)}" for _ in range(4 * SEEN_AGE)]
    for key in set(keys):
        table.put(key, hash_of(key), 1, bytes(16), "bytes", b"")
    words, lease = (memoryview(bytearray(8)).cast("Q") for _ in range(2))
    lease[0] = (1 << 64) - 1
    reader: Callable[..., tuple[list[str], list[tuple[str, int, object]], int]] = native.HostReader(
        HASH_KEY, table.reader
    ).collect
    there, here = Seen(), Seen()
    there.slots[0] = here.slots[0] = age
    for start in range(0, len(keys), 100):
        some = keys[start : start + 100]
        rest, again, _ = reader(Membership({}, words, lease), some, {}, there.slots)
        expected = [key for key in some if key not in rest and here.again(hash_of(key))]
        assert [key for key, *_ in again] == expected
    assert there.slots == here.slots
    assert len(there.slots) == SEEN_HEAD + SEEN_SLOTS
