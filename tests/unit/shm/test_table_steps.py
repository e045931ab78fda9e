"""No reader finds a torn or a foreign record, whatever the moments of its loads.

Writers put, evict, wrap and move; they are killed between any two stores, and another goes on. All
this is held without the CRC, which is for writers that work at the same time. Broken orders of the
stores or of the loads show that the test can fail.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import pytest

from dstore.core.local.shared import Record
from dstore.shm import records
from dstore.shm.layout import (
    EVICTIONS,
    HEAD,
    HEADER_BYTES,
    MAIN,
    MOVES,
    READMITTED,
    RESETS,
    SMALL,
    TAIL,
    Layout,
)
from dstore.shm.records import PureReader
from dstore.shm.ring import PureWriter, begin
from tests.unit.shm.replay import WORD, History, Replayed, Store, Traced, outcomes
from tests.unit.shm.tables import body_of, hash_of, is_right, token_of

KEYS = "abcdefghij"
LAYOUT = Layout.build(8, 36, 47)
TAILS = frozenset(WORD * (ring + TAIL) for ring in (SMALL, MAIN))
HEADS = frozenset(WORD * (ring + HEAD) for ring in (SMALL, MAIN))
INDEX = range(HEADER_BYTES, LAYOUT.visited)
DATA = range(LAYOUT.small, LAYOUT.total)
SEEDS = (1, 6, 7, 8, 27, 41)
"""Together they do all that writers do, and the moments can all be tried in a few seconds."""
Reorder = Callable[[list[Store]], list[Store]]


class Anything:
    """A CRC that is equal to any other."""

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture
def without_crc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the order of the steps protects the reader."""
    monkeypatch.setattr(records, "crc32", lambda data, position: Anything())


def put(memory: bytes, key: str, seq: int, length: int, *, ascending: bool = True) -> Traced:
    """One put; returns the memory with its trace."""
    traced = Traced(memory, ascending=ascending)
    writer = PureWriter(traced, LAYOUT, lambda start, end: end)  # type: ignore[arg-type]
    body = body_of(key, seq, length)
    writer.put(key, hash_of(key), seq, token_of(key, seq), "bytes", body)
    return traced


def find(memory: Any, key: str) -> Record | None:
    return PureReader(memory, LAYOUT).find(key, hash_of(key))


def is_wrong(key: str, found: Record | None) -> bool:
    return found is not None and not is_right(key, found)


def filled(rng: random.Random) -> bytes:
    """The memory of a table in which both rings have wrapped, with some records read."""
    memory = bytearray(LAYOUT.total)
    begin(memoryview(memory).cast("Q"), LAYOUT, LAYOUT.small_units, LAYOUT.main_units)
    for seq in range(30 + rng.randrange(12)):
        memory[:] = put(bytes(memory), rng.choice(KEYS), seq, rng.randrange(9, 18)).now
        for key in rng.choices(KEYS, k=3):
            find(memoryview(memory), key)
    return bytes(memory)


def as_written(stores: list[Store]) -> list[Store]:
    return stores


def violations(
    memory: bytes,
    stores: list[Store],
    frozen: frozenset[int] = frozenset(),
    most: int | None = None,
) -> Iterator[str]:
    """What readers find that is wrong, in all outcomes, or in ``most`` of each key."""
    history = History(memory, stores)
    for key in KEYS:
        for found in islice(outcomes(history, partial(find, key=key), frozen), most):
            if is_wrong(key, found):
                yield f"{key}: {found}"


def applied(memory: bytes, stores: list[Store]) -> bytes:
    now = bytearray(memory)
    for offset, data in stores:
        now[offset : offset + len(data)] = data
    return bytes(now)


def against_writers(seed: int, reorder: Reorder, frozen: frozenset[int]) -> Iterator[str]:
    """Readers while two puts are made, the second one by another process."""
    rng = random.Random(seed)
    memory = begun = filled(rng)
    stores: list[Store] = []
    for seq in (100, 101):
        key, length = rng.choice(KEYS), rng.randrange(9, 18)
        traced = put(memory, key, seq, length, ascending=rng.random() < 0.5)
        stores += reorder(traced.stores)
        memory = bytes(traced.now)
    yield from violations(begun, stores, frozen)


def against_killed_writers(seed: int, reorder: Reorder) -> Iterator[str]:
    """Readers while a writer is killed after each of its stores, and then another one puts."""
    rng = random.Random(seed)
    memory = filled(rng)
    stores = reorder(put(memory, rng.choice(KEYS), 100, rng.randrange(9, 18)).stores)
    key, length = rng.choice(KEYS), rng.randrange(9, 18)
    for count in range(len(stores) + 1):
        left = applied(memory, stores[:count])
        then = put(left, key, 101, length)
        assert memoryview(then.now).cast("Q")[RESETS] == 0
        yield from violations(memory, stores[:count] + reorder(then.stores))


@pytest.mark.usefixtures("without_crc")
@pytest.mark.parametrize("seed", SEEDS)
def test_readers_against_writers(seed: int) -> None:
    assert list(against_writers(seed, as_written, frozenset())) == []


@pytest.mark.usefixtures("without_crc")
@pytest.mark.parametrize("seed", SEEDS)
def test_readers_against_killed_writers(seed: int) -> None:
    assert list(against_killed_writers(seed, as_written)) == []


def test_the_seeds_evict_move_wrap_and_readmit() -> None:
    changed: set[int] = set()
    fillers = 0
    for seed in SEEDS:
        rng = random.Random(seed)
        memory = filled(rng)
        for seq in (100, 101):
            traced = put(memory, rng.choice(KEYS), seq, rng.randrange(9, 18))
            rng.random()
            memory = bytes(traced.now)
            changed.update(offset // WORD for offset, _ in traced.stores)
            fillers += sum(data[3:] == b"\x80\0\0\0\0" for _, data in traced.stores)
    assert changed >= {EVICTIONS, MOVES, READMITTED, SMALL + HEAD, MAIN + HEAD}
    assert fillers


# ---- broken orders are caught -----------------------------------------------------------------


def moved(stores: list[Store], these: Any, behind: Any) -> list[Store]:
    """Have the stores to ``these`` offsets come after the next ones to the offsets ``behind``."""
    found: list[Store] = []
    held: list[Store] = []
    for at, store in enumerate(stores):
        if store[0] in these:
            held.append(store)
            continue
        found.append(store)
        last = at + 1 == len(stores) or stores[at + 1][0] not in behind
        if store[0] in behind and last:
            found += held
            held = []
    return found + held


def tail_after_bytes(stores: list[Store]) -> list[Store]:
    return moved(stores, TAILS, DATA)


def head_after_index(stores: list[Store]) -> list[Store]:
    return moved(stores, HEADS, INDEX)


def index_before_bytes(stores: list[Store]) -> list[Store]:
    return moved(stores, DATA, INDEX)


@pytest.mark.usefixtures("without_crc")
@pytest.mark.parametrize("broken", [tail_after_bytes, index_before_bytes])
def test_a_wrong_order_of_stores_is_caught(broken: Reorder) -> None:
    assert any(list(against_writers(seed, broken, frozenset())) for seed in SEEDS)


@pytest.mark.usefixtures("without_crc")
def test_a_head_that_follows_the_index_word_is_caught() -> None:
    """A killed writer leaves a record that is found, where the next one writes."""
    assert not any(list(against_writers(seed, head_after_index, frozenset())) for seed in SEEDS)
    assert any(list(against_killed_writers(seed, head_after_index)) for seed in SEEDS)


@pytest.mark.usefixtures("without_crc")
def test_a_reader_that_does_not_look_at_the_tail_again_is_caught() -> None:
    assert any(list(against_writers(seed, as_written, TAILS)) for seed in SEEDS)


# ---- a writer that has lost its lock ----------------------------------------------------------


def against_two_writers(seed: int) -> Iterator[str]:
    """Two writers began with the same memory; their stores come in any order."""
    rng = random.Random(seed)
    memory = filled(rng)
    both = [put(memory, rng.choice(KEYS), seq, rng.randrange(9, 18)).stores for seq in (100, 101)]
    stores = []
    while any(both):
        stores.append(rng.choice([each for each in both if each]).pop(0))
    yield from violations(memory, stores, most=500)


def test_the_crc_is_enough_against_a_writer_that_has_lost_its_lock() -> None:
    assert [wrong for seed in range(25) for wrong in against_two_writers(seed)] == []


@pytest.mark.usefixtures("without_crc")
def test_and_it_is_needed() -> None:
    assert any(list(against_two_writers(seed)) for seed in range(25))


def test_the_reader_steps_through_each_load() -> None:
    """The test of the test: a word is seen in each of its values, and none is seen to go back."""
    stores = [(0, b"b" * 8), (8, b"b" * 8), (0, b"c" * 8)]
    history = History(b"a" * 16, stores)

    def read(memory: Replayed) -> str:
        return (memory.load(0)[:1] + memory.load(8)[:1] + memory.load(0)[:1]).decode()

    assert sorted(outcomes(history, read)) == sorted(
        ["aaa", "aab", "aac", "abb", "abc", "bab", "bac", "bbb", "bbc", "cbc"]
    )
