"""The cache of a Local: bounded, and SIEVE decides who goes."""

from __future__ import annotations

import ast
import gc
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dstore
from dstore.client.commands import Commands
from dstore.codecs import KEPT, Codecs
from dstore.core.local import cache as cache_module
from dstore.core.local.cache import (
    ENTRY_OVERHEAD,
    SEEN,
    SHARED_OVERHEAD,
    STORED_OVERHEAD,
    Cache,
)
from dstore.core.local.membership import Entry, Membership
from dstore.protocol import wire
from dstore.protocol.messages import Found, GetReply, Stored

ROOM = ENTRY_OVERHEAD + 2  # one entry of a one-letter key and a one-byte value


def insert(cache: Cache, key: str, body: bytes = b"v", seq: int = 0) -> Entry | None:
    return cache.insert(key, seq, bytes(16), "bytes", body)


def filled(keys: str, room: int) -> Cache:
    cache = Cache(room * ROOM, KEPT)
    for key in keys:
        insert(cache, key)
    return cache


def test_what_was_never_read_goes_first_oldest_first() -> None:
    cache = filled("abc", room=3)
    insert(cache, "d")
    assert [entry.key for entry in cache] == ["b", "c", "d"]
    assert cache.evictions == 1


def test_what_was_read_is_passed_over_once() -> None:
    cache = filled("abc", room=3)
    cache.entries["a"].visited = True
    insert(cache, "d")
    assert set(cache.entries) == {"a", "c", "d"}
    assert not cache.entries["a"].visited
    insert(cache, "e")
    assert set(cache.entries) == {"a", "d", "e"}, "the hand goes on from where it stood"


def test_when_all_were_read_the_hand_comes_round() -> None:
    cache = filled("abc", room=3)
    for entry in cache:
        entry.visited = True
    insert(cache, "d")
    assert set(cache.entries) == {"b", "c", "d"}


def test_the_hand_moves_on_when_its_entry_is_discarded() -> None:
    cache = filled("abcd", room=4)
    cache.entries["a"].visited = True
    insert(cache, "e")  # evicts b; the hand is at c
    assert cache.discard("c")
    insert(cache, "f")
    insert(cache, "g")  # the hand was moved to d
    assert set(cache.entries) == {"a", "e", "f", "g"}


def test_a_value_above_the_limit_is_not_held() -> None:
    cache = filled("ab", room=2)
    assert insert(cache, "c", b"x" * 3 * ROOM) is None
    assert set(cache.entries) == {"a", "b"}


def test_a_newer_value_takes_the_place_of_an_older_one() -> None:
    cache = filled("a", room=3)
    entry = insert(cache, "a", b"w")
    assert isinstance(entry, Entry)
    assert entry.value == b"w"
    assert list(cache) == [entry]
    assert cache.size == ROOM


def test_clear_empties_the_same_dictionary() -> None:
    cache = filled("abc", room=3)
    entries = cache.entries
    cache.clear()
    assert cache.entries is entries
    assert not entries
    assert cache.size == 0
    insert(cache, "d")
    assert [entry.key for entry in cache] == ["d"]


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_whatever_happens_list_dictionary_and_size_agree(seed: int, room: int) -> None:
    draw = random.Random(seed)
    cache = Cache(room * ROOM, KEPT)
    for _ in range(200):
        key = draw.choice("abcdefghijklmnop")
        match draw.randrange(8):
            case 0:
                cache.discard(key)
            case 1 | 2 | 3:
                insert(cache, key, b"v" * draw.randrange(3))
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

    def insert_shared(name: str) -> None:
        cache.insert_mapped(name, 0, Stored(name.encode() * 16, "bytes", memoryview(b"v")), True)

    for name in "abc":
        insert_shared(name)
    insert(cache, "x")
    cache.entries["a"].visited = SEEN
    insert_shared("d")
    assert set(cache.entries) == {"a", "c", "x", "d"}
    assert len(cache.shared) == 3
    insert_shared("e")
    assert set(cache.entries) == {"a", "x", "d", "e"}, "its place is behind c by now"
    insert_shared("f")
    assert set(cache.entries) == {"x", "d", "e", "f"}
    assert cache.evictions == 3


# ---- the value of an entry stays ----------------------------------------------------------------


def assigned(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield each attribute that is assigned to or deleted, unless it is one of ``self``."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and not isinstance(node.ctx, ast.Load)
            and ast.unparse(node.value) not in ("self", "call")  # a call of an event loop
        ):
            yield node


def test_nothing_replaces_the_value_of_an_entry() -> None:
    """A hit on another thread returns it at the same time: with a compiled Entry, freed memory."""
    places = [
        f"{path}:{node.lineno}"
        for path in Path(dstore.__file__).parent.rglob("*.py")
        for node in assigned(ast.parse(path.read_text("utf-8")))
        if node.attr in ("value", "key", "entries", "words")
    ]
    assert places == []


def test_an_entry_with_another_value_is_another_entry() -> None:
    cache = filled("a", room=2)
    first = cache.entries["a"]
    second = insert(cache, "a", b"w", seq=1)
    assert cache.entries["a"] is second is not first
    assert (first.value, first.seq) == (b"v", 0)
    assert insert(cache, "a", b"x", seq=0) is None, "it is older"
    assert cache.entries["a"] is second


def test_a_value_is_kept_decoded_if_its_codec_can_serve_all_readers() -> None:
    cache = Cache(1 << 20, KEPT)
    values: dict[str, object] = {"b": b"v", "t": "\N{SNOWMAN}", "n": -5, "l": [1]}
    for key, value in values.items():
        encoded = Codecs().encode(value)
        entry = cache.insert(key, 1, bytes(16), encoded.codec, encoded.joined())
        assert entry is not None
        stored = Stored(bytes(16), encoded.codec, encoded.joined())
        assert entry.value == (stored if key == "l" else value)
    damaged = cache.insert("t", 1, bytes(16), "text", b"\xff")
    assert damaged is not None
    assert damaged.value == Stored(bytes(16), "text", b"\xff")


# ---- what an entry takes ------------------------------------------------------------------------


def ascii_key(number: int) -> str:
    return f"user:{number}"


def wide_key(number: int) -> str:
    return "ü漢" * 50 + str(number)


def astral_key(number: int) -> str:
    return "\N{GRINNING FACE}" * 100 + str(number)


@pytest.mark.parametrize("hit", [False, True])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        (ascii_key, 1.5),
        (ascii_key, b"x" * 8),
        (ascii_key, b"x" * 100),
        (ascii_key, "x" * 20),
        (ascii_key, (1, 2)),
        (wide_key, b"x"),
        (astral_key, b"x"),
        (ascii_key, "漢" * 1000),
        (ascii_key, "ü" * 1000),
        (ascii_key, "x" * 3000 + "漢"),
        (ascii_key, "x" * 3000 + "\N{GRINNING FACE}"),
        (ascii_key, b"x" * 30_000),
    ],
)
def test_what_is_counted_is_what_it_takes(
    key: Callable[[int], str], value: object, hit: bool
) -> None:
    encoded = Codecs().encode(value)
    commands = Commands(Codecs(), 1.0, False)
    cache = Cache(1 << 30, KEPT)
    entries = 300
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(entries):
            stored = Stored(os.urandom(16), encoded.codec, encoded.joined() + b"")
            frame = wire.encode(GetReply.of((1, 1, 1), 1000 + number, [Found(0, True, stored)]))
            reply: Any = wire.decode_to_local(frame)
            (body,) = reply.bodies
            entry = cache.insert(key(number), reply.seq, reply.tokens, reply.codecs[0], body)
            assert entry is not None
            if hit:
                assert commands.opened(entry) == value
        del stored, frame, reply, body, entry
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.9 * taken < cache.size < 1.2 * taken, cache.size / taken


def test_a_value_whose_bytes_are_shared_counts_its_mapping_alone() -> None:
    cache = Cache(1 << 30)
    body = memoryview(bytes(100_000))
    cache.insert_mapped("k", 0, Stored(bytes(16), "bytes", body), shared=True)
    assert cache.size == ENTRY_OVERHEAD + STORED_OVERHEAD + SHARED_OVERHEAD + 1
    cache.insert_mapped("k", 0, Stored(bytes(16), "bytes", body), shared=False)
    assert cache.size == ENTRY_OVERHEAD + STORED_OVERHEAD + len(body) + 1


def test_caches_with_one_index_keep_it_to_what_they_have() -> None:
    index: dict[str, Entry] = {}
    one, two = Cache(1 << 20), Cache(1 << 20)
    insert(one, "before")
    homes = [Membership(one.entries), Membership(two.entries)]
    for cache, home in zip((one, two), homes):
        cache.join_index(index)
        cache.belong_to(home)
    insert(one, "a")
    insert(two, "b")
    assert {key: entry.home for key, entry in index.items()} == {
        "before": homes[0],
        "a": homes[0],
        "b": homes[1],
    }
    insert(two, "a", seq=1)  # its partition has moved
    one.discard("a")
    assert index["a"] is two.entries["a"]
    two.discard("b")
    assert set(index) == {"before", "a"}
    one.renew()
    assert set(index) == {"a"}
    two.limit = ENTRY_OVERHEAD
    two.shrink()
    assert (index, two.size) == ({}, 0)
