"""Reader and writer of the host cache, in memory of the test: one contract for both twins."""

from __future__ import annotations

import random
from zlib import crc32

import pytest

from dstore.core.local.shared import Record
from dstore.shm.layout import (
    EVICTIONS,
    HEAD,
    HEAD_OF_RECORD,
    HEADER_BYTES,
    MAIN,
    MOVES,
    POSITION_MASK,
    PUTS,
    READMITTED,
    RESETS,
    SIZE,
    SMALL,
    TAIL,
    UNIT,
    Layout,
)
from dstore.shm.records import index_word
from tests.unit.shm.tables import Small, Twin, body_of, hash_of, kinds, token_of, twin

HEAD_UNITS = 6
KEYS = ["a", "key", "ü", "x" * 511, "漢字", b"\xff\x00z".decode("utf-8", "surrogateescape")]


@pytest.fixture(params=kinds())
def kind(request: pytest.FixtureRequest) -> Twin:
    return twin(request.param)


def units_of(key: str, length: int) -> int:
    raw = key.encode("utf-8", "surrogateescape")
    return HEAD_UNITS + -(-(len("bytes") + len(raw) + length) // UNIT)


def filled(table: Small, prefix: str, length: int = 20) -> list[str]:
    """Fill the main ring for the first time. Returns the keys."""
    keys: list[str] = []
    while table.words[MAIN + HEAD] + units_of(f"{prefix}00", length) <= table.words[MAIN + SIZE]:
        keys.append(f"{prefix}{len(keys):02}")
        assert table.put(keys[-1], 1, length)
    return keys


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 4000])
def test_what_was_put_is_found(kind: Twin, key: str, length: int) -> None:
    table = Small(kind, small=4096, main=4096)
    assert table.find(key) is None
    assert table.put(key, 7, length)
    found = table.find(key)
    assert found == Record(7, token_of(key, 7), "bytes", body_of(key, 7, length))
    assert type(found) is Record and hash(found) == hash(tuple(found))
    assert table.find(key + "x") is None


def test_any_codec_seq_and_token_come_back(kind: Twin) -> None:
    table = Small(kind, small=4096, main=4096)
    for seq, codec in ((0, "x"), ((1 << 64) - 1, "c" * 64)):
        assert table.writer.put("k", hash_of("k"), seq, bytes(range(16)), codec, b"body")
        assert table.reader.find("k", hash_of("k")) == (seq, bytes(range(16)), codec, b"body")


def test_what_cannot_be_a_record_is_refused(kind: Twin) -> None:
    table = Small(kind)
    hashed, token = hash_of("k"), bytes(16)
    before = bytes(table.memory)
    for seq, some, codec, body in (
        (-1, token, "bytes", b""),
        (1 << 64, token, "bytes", b""),
        (1, token[:15], "bytes", b""),
        (1, token, "ü", b""),
        (1, token, "c" * 256, b""),
        (1, token, "bytes", bytes(UNIT * 64 // 4)),
    ):
        assert not table.writer.put("k", hashed, seq, some, codec, body)
    assert bytes(table.memory) == before


def test_a_record_takes_at_most_a_quarter_of_the_small_ring(kind: Twin) -> None:
    table = Small(kind, small=64, main=640)
    exactly = UNIT * (16 - HEAD_UNITS) - len("bytesk")
    assert units_of("k", exactly) == 16
    assert table.put("k", 1, exactly) and not table.put("l", 1, exactly + 1)


def test_a_newer_record_takes_the_place_of_an_older_one(kind: Twin) -> None:
    table = Small(kind)
    for seq, done, present in ((5, True, 5), (4, False, 5), (5, True, 5), (6, True, 6)):
        assert table.put("k", seq) is done
        found = table.find("k")
        assert found is not None and found.seq == present
    assert table.words[PUTS] == 2, "the same write again is not written again"


def test_another_write_of_the_same_seq_is_written(kind: Twin) -> None:
    table = Small(kind)
    for token in (b"a" * 16, b"b" * 16):
        assert table.writer.put("k", hash_of("k"), 1, token, "bytes", token)
        found = table.reader.find("k", hash_of("k"))
        assert found.body == token


def test_until_the_main_ring_is_full_nothing_leaves(kind: Twin) -> None:
    table = Small(kind)
    keys = filled(table, "k")
    assert len(keys) > 20 and table.present(keys) == keys
    assert table.words[SMALL + HEAD] == 1, "the small ring is not used yet"


def test_what_is_not_read_leaves_the_small_ring(kind: Twin) -> None:
    table = Small(kind)
    old = filled(table, "k")
    new = [f"n{number:02}" for number in range(20)]
    assert all(map(table.put, new))
    assert table.present(old) == old
    # 64 units of 10 each, and a filler of 4.
    assert table.present(new) == new[-6:]


def test_what_is_read_moves_to_the_main_ring(kind: Twin) -> None:
    table = Small(kind)
    old = filled(table, "k")
    table.put("n")
    assert table.find("n")
    for number in range(30):
        table.put(f"o{number:02}")
    assert table.present(["n", *old]) == ["n", *old[1:]]
    assert table.words[MOVES] == 1
    # It counts as unread in its new place, and leaves when all before it have left.
    for number in range(2 * len(old)):
        table.put(f"p{number:02}")
        assert table.find(f"p{number:02}")
    for number in range(30):
        table.put(f"q{number:02}")
    assert table.present(["n"]) == []


def test_what_is_read_stays_in_the_main_ring(kind: Twin) -> None:
    table = Small(kind)
    old = filled(table, "k")
    for _ in range(3):
        assert table.find(old[0])
        for number in range(len(old)):  # each moves to the main ring
            table.put(f"n{number:02}", random.getrandbits(30))
            assert table.find(f"n{number:02}")
    assert table.present(old[:2]) == [old[0]]


def test_a_key_that_has_left_is_remembered(kind: Twin) -> None:
    table = Small(kind)
    filled(table, "k")
    for number in range(20):
        table.put(f"n{number:02}")
    assert table.present(["n05"]) == []
    assert table.words[READMITTED] == 0
    assert table.put("n05")
    assert table.words[READMITTED] == 1
    for number in range(20, 40):
        table.put(f"n{number:02}")
    assert table.present(["n05"]) == ["n05"]


def test_a_full_set_gives_up_what_is_not_read(kind: Twin) -> None:
    table = Small(kind, words=8, main=4096)
    keys = [f"k{number}" for number in range(8)]
    for key in keys:
        assert table.put(key)
    assert table.present(keys) == keys
    assert all(table.find(key) for key in keys if key != "k3")
    assert table.put("more")
    assert table.present([*keys, "more"]) == [*(k for k in keys if k != "k3"), "more"]
    assert table.words[EVICTIONS] == 1
    assert table.find("more")
    assert table.put("again"), "all are read: any leaves"
    assert len(table.present([*keys, "more", "again"])) == 8


def test_a_move_does_not_outlive_a_replacement(kind: Twin) -> None:
    """The old record of a key is still in the small ring, read, when a new one is put."""
    table = Small(kind)
    filled(table, "k")
    table.put("n", 1)
    assert table.find("n")
    table.put("n", 2)
    assert table.find("n")
    for number in range(20):
        table.put(f"o{number:02}")
        found = table.find("n")
        assert found is not None and found.seq == 2
    assert table.words[MOVES] == 1


def test_moves_of_one_put_are_bounded(kind: Twin) -> None:
    table = Small(kind, words=1024, small=2048, main=8192)
    filled(table, "k")
    keys = [f"n{number:03}" for number in range(204)]
    for key in keys:
        table.put(key)
        assert table.find(key)
    assert table.words[MOVES] == 0
    assert table.put("large", 1, 3900)  # more than 40 records have to leave
    assert table.words[MOVES] == 32


def test_the_twins_write_the_same_bytes() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        tables = [Small(twin(each), 32, 128, 512) for each in kinds()]
        for step in range(600):
            key, seq, length = f"k{rng.paretovariate(0.4):.0f}"[:9], step // 50, rng.randrange(180)
            some = f"k{rng.randrange(20)}"
            assert len({table.put(key, seq, length) for table in tables}) == 1
            assert len({table.find(some) for table in tables}) == 1
            assert tables[0].memory == tables[1].memory, f"seed {seed}, step {step}"
        assert all(tables[0].words[each] for each in (EVICTIONS, MOVES, READMITTED))
        assert tables[0].words[RESETS] == 0


@pytest.mark.parametrize("laps", [1, 3])
def test_positions_beyond_48_bits(kind: Twin, laps: int) -> None:
    table = Small(kind)
    for each in (SMALL, MAIN):
        words = table.words
        words[each + TAIL] = words[each + HEAD] = laps * (POSITION_MASK + 1) - 500
    rng = random.Random(laps)
    found = 0
    for number in range(400):
        assert table.put(f"k{number}")
        found += table.find(f"k{number}") is not None
        table.find(f"k{rng.randrange(max(0, number - 20), number + 1)}")
    assert table.words[SMALL + HEAD] > laps * (POSITION_MASK + 1) and found == 400
    assert table.words[RESETS] == 0


# ---- damage -----------------------------------------------------------------------------------


def forged(key: str, position: int) -> bytes:
    """The bytes of a whole record of a key at a position."""
    data = HEAD_OF_RECORD.pack(hash_of(key), 9, bytes(16), 6, len(key), 5, 0)
    data += b"bytes" + key.encode() + b"forged"
    data += bytes(-len(data) % UNIT)
    units = 1 + len(data) // UNIT
    top = crc32(data, position) << 32 | units
    return top.to_bytes(8, "little") + data


def place_of(table: Small, key: str) -> int:
    return next(
        place
        for place in range(HEADER_BYTES // UNIT, HEADER_BYTES // UNIT + table.layout.index_words)
        if table.words[place] and table.words[place] & 0x7FFF == hash_of(key) >> 49
    )


def test_a_record_within_a_value_is_never_found(kind: Twin) -> None:
    """Not even by an index word that names it, unless the position is right, too."""
    for position, found in ((1234, False), (1 + HEAD_UNITS + 1, True)):
        table = Small(kind, main=1024, small=256)
        # codec and key take a whole unit, so that the forged record is at a whole one
        body = forged("victim", position)
        assert table.writer.put("abc", hash_of("abc"), 1, bytes(16), "bytes", body)
        assert table.reader.find("victim", hash_of("victim")) is None
        place = place_of(table, "abc") // 8 * 8
        # As only a damaged index would have it:
        first = 512 + ((hash_of("victim") >> 17 & 0xFFFFFFFF) * 8 >> 32) * 8
        assert place % 8 == 0
        table.words[first] = index_word(1 + HEAD_UNITS + 1, MAIN, hash_of("victim") >> 49)
        there = table.reader.find("victim", hash_of("victim"))
        assert (there is not None) is found


def test_no_flipped_bit_gives_another_value(kind: Twin) -> None:
    table = Small(kind)
    table.put("k", 3, 40)
    whole = bytes(table.memory)
    begin, units = table.layout.main + UNIT, units_of("k", 40)
    for bit in range(8 * UNIT * units):
        table.memory[begin + bit // 8] ^= 1 << bit % 8
        assert table.find("k") is None
        table.memory[:] = whole
    assert table.find("k") is not None


def test_any_garbage_in_a_table_is_survived(kind: Twin) -> None:
    """As writers without a lock leave it: no error, no endless loop, no wrong value."""
    for seed in range(300):
        rng = random.Random(seed)
        table = Small(kind)
        keys = [f"k{number}" for number in range(80)]
        for step in range(200):
            key = rng.choice(keys)
            table.put(key, step, rng.randrange(100))
            table.find(rng.choice(keys))
        for _ in range(rng.randrange(1, 40)):
            place = rng.choice((*range(HEADER_BYTES // UNIT, len(table.words)), *[1, 2] * 20))
            if place > 2:
                table.words[place] = rng.getrandbits(64)
            else:  # a head or a tail that is behind, or beyond
                which = rng.choice((SMALL + HEAD, SMALL + TAIL, MAIN + HEAD, MAIN + TAIL))
                table.words[which] = max(0, table.words[which] + rng.randrange(-200, 200))
        for step in range(200, 400):
            table.put(rng.choice(keys), step, rng.randrange(100))
            table.find(rng.choice(keys))
        assert table.put("last", 500) and table.find("last")


def test_zeros_are_an_empty_table_that_takes_nothing(kind: Twin) -> None:
    table = Small(kind)
    table.put("k")
    table.memory[:] = bytes(len(table.memory))
    assert table.find("k") is None and not table.put("k")


def test_a_layout_uses_nearly_all_of_its_bytes() -> None:
    for size in (1 << 20, 3_333_333, 64 << 20, 1 << 30):
        layout = Layout.of(size)
        assert size - 3 * 4096 < layout.total <= size
        assert 0.08 < layout.small_units / (layout.small_units + layout.main_units) <= 0.1
        assert layout.small % 4096 == layout.main % 4096 == 0
        assert layout.index_words * 13 < size / 9.8
