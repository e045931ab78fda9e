"""The in-memory engine keeps the contract, and counts what it takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dstore.protocol.messages import Large, Stored
from dstore.server.engines.memory import MemoryEngine
from dstore.testing.engine_contract import EngineContract

ENTRIES = 20_000
NOISE = 1 << 20
"""Bytes by which the resident memory of a process moves for reasons of its own."""


class TestMemoryEngine(EngineContract):
    def make(self, limit: int) -> MemoryEngine:
        return MemoryEngine(limit)


def test_what_is_loaded_at_once_is_as_if_each_had_been_bound() -> None:
    keys = ["b", "a", "é", "\udcff", "漢字", "c" * 300]
    values = {
        key: Stored(bytes([number]) * 16, "c" * number, Large(7, bytes(32)) if number % 2 else b"x")
        for number, key in enumerate(keys)
    }
    bound, loaded = MemoryEngine(), MemoryEngine(limit=1)
    for key, stored in values.items():
        bound.bind(key, stored)
    loaded.bind_all(dict(values))
    for engine in (bound, loaded):
        assert {key: engine.read(key) for key in keys} == values and len(engine) == len(keys)
        assert engine.scan("", "", 10) == ["a", "b", "c" * 300, "é", "漢字", "\udcff"]
    assert loaded.size == bound.size > 0
    for engine in (bound, loaded):
        for key, stored in values.items():
            assert engine.remove(key, stored.token)
        assert engine.size == len(engine) == 0 and engine.scan("", "", 10) == []


# ---- what it counts, and what the process really takes ----------------------------------------

FILL = """
import sys
from dstore.protocol import wire
from dstore.shm.bulk import PrivateBulk
from dstore.server.engines.memory import MemoryEngine
from dstore.protocol.messages import Large, Set, SetItem, Stored

KEYS = {
    "short ASCII": "{}",
    "long ASCII": "{}" + "k" * 503,
    "emoji": "{}" + "\\U0001f600" * 125,
    "one emoji": "\\U0001f600{}" + "k" * 499,
    "CJK": "{}" + "\\u6f22" * 167,
    "accents": "{}" + "\\xe9" * 251,
    "short, one accent": "{}\\xe9",
    "not UTF-8": "{}" + "\\udcff" * 503,
}
KIND, COUNT, CODEC, BODY = sys.argv[1], int(sys.argv[2]), "c" * int(sys.argv[3]), int(sys.argv[4])
large = BODY < 0
engine, bulk = MemoryEngine(1 << 40), PrivateBulk()


def arrive(number):
    "Bind what has come in a message, of objects of its own."
    key, token = KEYS[KIND].format(f"{number:08x}"), number.to_bytes(16, "big")
    body = Large(-BODY, bytes(32)) if large else bytes(BODY)
    item = SetItem(key, Stored(token, CODEC, body))
    (item,) = wire.decode_to_global(wire.encode(Set(1, 1, 1, 1, 1, False, [item]))).items
    if large:
        bulk.reserve(token, -BODY)
        bulk.write(token, 0, bytes(-BODY))
        bulk.seal(token)
    engine.bind(item.key, item.stored)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


for number in range(1000):  # whatever is taken once
    arrive(number)
before, counted = resident(), engine.size
for number in range(1000, COUNT):
    arrive(number)
print(resident() - before, engine.size - counted)
"""


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
@pytest.mark.parametrize(
    ("kind", "codec", "body"),
    [
        ("short ASCII", 5, 0),
        ("short ASCII", 64, 0),
        ("short ASCII", 5, 100),
        ("short ASCII", 5, 700),
        ("short ASCII", 5, -1),  # a large value of one byte
        ("short ASCII", 5, -1024),
        ("long ASCII", 5, 0),
        ("emoji", 5, 0),
        ("one emoji", 64, 0),
        ("CJK", 5, 0),
        ("accents", 5, 0),
        ("short, one accent", 5, 0),
        ("not UTF-8", 5, 0),
    ],
)
def test_the_size_is_at_least_what_the_process_takes_and_not_far_from_it(
    kind: str, codec: int, body: int
) -> None:
    arguments = (kind, str(ENTRIES), str(codec), str(body))
    ran = subprocess.run(
        [sys.executable, "-c", FILL, *arguments], capture_output=True, text=True, check=True
    )
    taken, counted = map(int, ran.stdout.split())
    assert taken <= counted + NOISE
    assert counted <= 2.5 * taken + NOISE
