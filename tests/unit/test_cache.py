"""The cache of a Local: bounded, and SIEVE decides who goes."""

from __future__ import annotations

import gc
import os
import random
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.client.commands import Commands
from dstore.codecs import Codecs
from dstore.core.local import cache as cache_module
from dstore.core.local.cache import ENTRY_OVERHEAD, SEEN, SHARED_OVERHEAD, Cache, Entry
from dstore.protocol import wire
from dstore.protocol.messages import Found, GetReply, Stored

ROOM = ENTRY_OVERHEAD + 2  # one entry of a one-letter key and a one-byte value


def stored(body: bytes = b"v") -> Stored:
    return Stored(bytes(16), "bytes", body)


def filled(keys: str, room: int) -> Cache:
    cache = Cache(room * ROOM)
    for key in keys:
        cache.insert(key, stored())
    return cache


def test_what_was_never_read_goes_first_oldest_first() -> None:
    cache = filled("abc", room=3)
    cache.insert("d", stored())
    assert [entry.key for entry in cache] == ["b", "c", "d"]
    assert cache.evictions == 1


def test_what_was_read_is_passed_over_once() -> None:
    cache = filled("abc", room=3)
    cache.entries["a"].visited = True
    cache.insert("d", stored())
    assert set(cache.entries) == {"a", "c", "d"}
    assert not cache.entries["a"].visited
    cache.insert("e", stored())
    assert set(cache.entries) == {"a", "d", "e"}, "the hand goes on from where it stood"


def test_when_all_were_read_the_hand_comes_round() -> None:
    cache = filled("abc", room=3)
    for entry in cache:
        entry.visited = True
    cache.insert("d", stored())
    assert set(cache.entries) == {"b", "c", "d"}


def test_the_hand_moves_on_when_its_entry_is_discarded() -> None:
    cache = filled("abcd", room=4)
    cache.entries["a"].visited = True
    cache.insert("e", stored())  # evicts b; the hand is at c
    assert cache.discard("c")
    cache.insert("f", stored())
    cache.insert("g", stored())  # the hand was moved to d
    assert set(cache.entries) == {"a", "e", "f", "g"}


def test_a_value_above_the_limit_is_not_held() -> None:
    cache = filled("ab", room=2)
    assert cache.insert("c", stored(b"x" * 3 * ROOM)) is None
    assert set(cache.entries) == {"a", "b"}


def test_a_newer_value_takes_the_place_of_an_older_one() -> None:
    cache = filled("a", room=3)
    entry = cache.insert("a", stored(b"w"))
    assert isinstance(entry, Entry)
    assert list(cache) == [entry]
    assert cache.size == ROOM


def test_clear_empties_the_same_dictionary() -> None:
    cache = filled("abc", room=3)
    entries = cache.entries
    cache.clear()
    assert cache.entries is entries
    assert not entries
    assert cache.size == 0
    cache.insert("d", stored())
    assert [entry.key for entry in cache] == ["d"]


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_whatever_happens_list_dictionary_and_size_agree(seed: int, room: int) -> None:
    draw = random.Random(seed)
    cache = Cache(room * ROOM)
    for _ in range(200):
        key = draw.choice("abcdefghijklmnop")
        match draw.randrange(8):
            case 0:
                cache.discard(key)
            case 1 | 2 | 3:
                cache.insert(key, stored(b"v" * draw.randrange(3)))
            case 4 if draw.random() < 0.1:
                cache.clear()
            case _:
                if key in cache.entries:
                    cache.entries[key].visited = True
        forward = list(cache)
        assert {entry.key: entry for entry in forward} == cache.entries
        assert len(forward) == len(cache)
        assert sum(entry.size for entry in forward) == cache.size <= cache.limit


def test_what_is_dropped_waits_for_no_garbage_collector() -> None:
    cache = filled("abcd", room=4)
    gc.collect()
    gc.disable()
    try:
        cache.discard("b")
        cache.clear()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_shared_entries_are_bounded_and_those_that_were_read_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "SHARED_MAX", 3)
    cache = Cache(100 * (ROOM + SHARED_OVERHEAD))

    def insert(name: str, shared: bool = True) -> None:
        cache.insert(name, Stored(name.encode() * 16, "bytes", b"v"), shared=shared)

    for name in "abc":
        insert(name)
    insert("x", shared=False)
    cache.entries["a"].visited = SEEN
    insert("d")
    assert set(cache.entries) == {"a", "c", "x", "d"}
    assert len(cache.shared) == 3
    insert("e")
    assert set(cache.entries) == {"a", "x", "d", "e"}, "its place is behind c by now"
    insert("f")
    assert set(cache.entries) == {"x", "d", "e", "f"}
    assert cache.evictions == 3


# ---- what an entry takes ------------------------------------------------------------------------


def ascii_key(number: int) -> str:
    return f"user:{number}"


def wide_key(number: int) -> str:
    return "ü漢" * 50 + str(number)


def astral_key(number: int) -> str:
    return "\N{GRINNING FACE}" * 100 + str(number)


@pytest.mark.parametrize("hit", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "most"),
    [
        (ascii_key, 1.5, 1.7),
        (ascii_key, b"x" * 8, 1.6),
        (ascii_key, b"x" * 100, 1.5),
        (ascii_key, "x" * 20, 1.5),
        (ascii_key, (1, 2), 1.5),
        (wide_key, b"x", 1.5),
        (astral_key, b"x", 1.5),
        (ascii_key, "漢" * 1000, 1.6),
        (ascii_key, "ü" * 1000, 2.0),  # these take two bytes as they come, and then one
        (ascii_key, "x" * 3000 + "漢", 2.0),  # and this one, and then two
        (ascii_key, "x" * 3000 + "\N{GRINNING FACE}", 4.0),
        (ascii_key, b"x" * 30_000, 1.2),
    ],
)
def test_what_is_counted_is_what_it_takes(
    key: Callable[[int], str], value: object, most: float, hit: bool
) -> None:
    encoded = Codecs().encode(value)
    commands = Commands(Codecs(), 1.0, False)
    cache = Cache(1 << 30)
    entries = 300
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(entries):
            stored = Stored(os.urandom(16), encoded.codec, encoded.joined() + b"")
            frame = wire.encode(GetReply(1, 1, 1, [Found(1, True, stored)]))
            (found,) = wire.decode_to_local(frame).items  # type: ignore[union-attr]
            assert isinstance(found, Found)
            entry = cache.insert(key(number), found.stored)
            assert entry is not None
            if hit:
                assert commands.opened(entry) == value
        del stored, frame, found, entry
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.9 * taken < cache.size < most * taken, cache.size / taken


def test_a_value_whose_bytes_are_shared_counts_its_mapping_alone() -> None:
    cache = Cache(1 << 30)
    cache.insert("k", stored(bytes(100_000)), shared=True)
    assert cache.size == ENTRY_OVERHEAD + SHARED_OVERHEAD + 1
