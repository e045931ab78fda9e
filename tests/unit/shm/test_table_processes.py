"""Processes that write and read one host cache, some of which are killed; and what is evicted."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pytest

from dstore.core.local.cache import Cache
from dstore.shm import directory, table
from dstore.shm.directory import Directory
from dstore.shm.layout import SIZE_MIN
from dstore.shm.table import Table
from tests.unit.shm.children import Child
from tests.unit.shm.tables import body_of, hash_of, is_right, kinds, token_of, twin

NAME = "some.table"
KEYS = [f"key{number}" for number in range(4000)]
HASHES = [hash_of(key) for key in KEYS]
KILLS = 25
READS = 60_000
OVERWRITTEN = 60_000
"""Reads of records that do not last."""


@pytest.fixture(params=kinds(), autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run each test with both twins."""
    found = twin(request.param)
    monkeypatch.setattr(table, "Reader", found.reader)
    monkeypatch.setattr(table, "Writer", found.writer)
    return found.name


@pytest.fixture
def here() -> Iterator[Directory]:
    path = tempfile.mkdtemp(dir=os.environ["DSTORE_SHM"])
    found = directory.walk(path)
    yield found
    found.close()
    shutil.rmtree(path)


def write_for_ever(here: Directory, seed: int, pipe: Connection) -> None:
    rng = random.Random(seed)
    mine = Table.open(here, NAME)
    for seq in itertools.count(seed):
        number = int(rng.paretovariate(0.3)) % len(KEYS)
        key, length = KEYS[number], rng.choice((10, 100, 1000, 5000))
        body = body_of(key, seq, length)
        mine.put(key, HASHES[number], seq, token_of(key, seq), "bytes", body)
        mine.find(KEYS[number // 2], HASHES[number // 2])
        if seq == seed + 20:
            pipe.send("at work")


def read(some: Table, count: int, rng: random.Random) -> int:
    """Look keys up. Returns how many were found; each must be right."""
    found = 0
    for number in rng.choices(range(len(KEYS)), k=count):
        record = some.find(KEYS[number], HASHES[number])
        if record is not None:
            assert is_right(KEYS[number], record), f"{KEYS[number]}: {record}"
            found += 1
    return found


def test_writers_that_are_killed_leave_nothing_wrong(here: Directory) -> None:
    some = Table.create(here, NAME, SIZE_MIN)
    rng = random.Random(1)
    found = 0
    steady = Child(partial(write_for_ever, here, 1 << 40))
    assert steady.hear() == "at work"
    for number in range(KILLS):
        writer = Child(partial(write_for_ever, here, number << 20))
        assert writer.hear() == "at work"
        found += read(some, READS // KILLS, rng)
        writer.kill()
        writer.end()
    steady.kill()
    steady.end()
    stats = some.stats()
    assert stats["resets"] == 0 and stats["puts"] > 50 * KILLS
    assert found > READS // 50 and read(some, 5000, rng)
    assert some.put("k", 5, 1, bytes(16), "bytes", b"") is True
    assert os.stat(NAME, dir_fd=here.fd).st_size <= SIZE_MIN
    some.close()


def test_readers_while_two_processes_write(here: Directory) -> None:
    some = Table.create(here, NAME, SIZE_MIN)

    def reader(pipe: Connection) -> None:
        mine = Table.open(here, NAME)
        pipe.recv()
        pipe.send(read(mine, READS, random.Random(os.getpid())))

    readers = [Child(reader) for _ in range(2)]
    writers = [Child(partial(write_for_ever, here, seed)) for seed in (1, 1 << 30)]
    for each in writers:
        assert each.hear() == "at work"
    for each in readers:
        each.tell()
    assert all(each.hear() > READS // 50 for each in readers)
    for each in (*readers, *writers):
        each.kill()
        each.end()
    assert some.stats()["resets"] == 0
    some.close()


def overwrite_for_ever(here: Directory, pipe: Connection) -> None:
    """Put large records of few keys, so that each is overwritten a moment later."""
    mine = Table.open(here, NAME)
    for seq in itertools.count(1):
        number = seq % 200
        key = KEYS[number]
        body = body_of(key, seq, 20_000)
        mine.put(key, HASHES[number], seq, token_of(key, seq), "bytes", body)
        if seq == 200:
            pipe.send("at work")


def test_records_that_are_overwritten_while_they_are_read(here: Directory) -> None:
    some = Table.create(here, NAME, SIZE_MIN)
    with Child(partial(overwrite_for_ever, here)) as writer:
        assert writer.hear() == "at work"
        found = 0
        number = 0
        for _ in range(OVERWRITTEN):
            record = some.find(KEYS[number], HASHES[number])
            if record is None:
                number = (number + 1) % 200
                continue
            # It is read again and again until it is overwritten.
            assert is_right(KEYS[number], record), f"{KEYS[number]}: {record.seq}"
            found += 1
        writer.kill()
    assert found > OVERWRITTEN // 50
    assert some.stats()["resets"] == 0
    some.close()


# ---- what is evicted --------------------------------------------------------------------------

SIZE_BYTES = 4 << 20


def zipf(count: int, length: int, exponent: float) -> list[int]:
    weights = itertools.accumulate(1 / (rank + 1) ** exponent for rank in range(count))
    return random.Random(3).choices(range(count), cum_weights=list(weights), k=length)


def with_scans(trace: list[int]) -> list[int]:
    """The same with keys in between that are read once."""
    found, scanned = [], 1 << 30
    for at in range(0, len(trace), 5000):
        found += trace[at : at + 5000] + list(range(scanned, scanned + 2500))
        scanned += 2500
    return found


def ratio_of_table(trace: list[int], length: int) -> float:
    some = Table.over(bytearray(SIZE_BYTES), SIZE_BYTES)
    hashes = {number: hash_of(str(number)) for number in set(trace)}
    body, hits = bytes(length), 0
    for number in trace:
        if some.find(str(number), hashes[number]) is not None:
            hits += 1
        else:
            some.put(str(number), hashes[number], 1, bytes(16), "bytes", body)
    return hits / len(trace)


def ratio_of_sieve(trace: list[int], length: int) -> float:
    cache = Cache(SIZE_BYTES)
    body, hits = bytes(length), 0
    for number in trace:
        entry: Any = cache.entries.get(str(number))
        if entry is not None:
            entry.visited = 1
            hits += 1
        else:
            cache.insert(str(number), 1, bytes(16), "bytes", body)
    return hits / len(trace)


@pytest.mark.parametrize("scans", [False, True])
@pytest.mark.parametrize("length", [100, 4000])
@pytest.mark.parametrize("exponent", [0.7, 1.0])
def test_hits_are_as_many_as_those_of_the_cache_of_a_process(
    exponent: float, length: int, scans: bool
) -> None:
    trace = zipf(40_000 if length == 100 else 8000, 60_000, exponent)
    if scans:
        trace = with_scans(trace)
    table_hits, sieve_hits = ratio_of_table(trace, length), ratio_of_sieve(trace, length)
    assert 0.1 < sieve_hits < 0.95
    assert table_hits > sieve_hits - 0.015


def test_a_loop_that_fits_is_all_hits() -> None:
    """Also one that is read for the first time: what is not read again does not leave early."""
    trace = list(range(15_000)) * 3
    assert ratio_of_table(trace, 100) > 0.66


def test_what_is_read_now_takes_the_place_of_what_was_read_before() -> None:
    old, new = list(range(10_000)) * 3, list(range(20_000, 30_000)) * 6
    hits = ratio_of_table(old + new, 100)
    assert hits * 90_000 > 20_000 * 0.95 + 50_000 * 0.7
