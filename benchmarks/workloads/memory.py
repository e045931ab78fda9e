"""Memory: of a cached key in a worker, and of a key in the server."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc

from benchmarks.measure import describe
from benchmarks.peers import BY_NAME, OURS, PURE, Client, Peer, connected
from benchmarks.processes import Place, PureWorker, Worker, resident
from benchmarks.run import Run
from benchmarks.settings import VALUE
from benchmarks.workloads.joins import idle
from benchmarks.workloads.reads import load, names

STEP = 1_000
WARM = 100


def fill(_: None, name: str, place: Place, count: int, traced: bool) -> float:
    """Read ``count`` more keys into a cache, each twice. Returns bytes per key."""

    def taken() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] if traced else resident(os.getpid())

    with connected(BY_NAME[name], place) as client:
        _read(client, name, 0, WARM)
        if traced:
            tracemalloc.start()
        before = taken()
        for start in range(WARM, count + WARM, STEP):
            _read(client, name, start, min(start + STEP, count + WARM))
        after = taken()
        tracemalloc.stop()
    return (after - before) / count


def _read(client: Client, name: str, start: int, end: int) -> None:
    keys = [f"memory/{number:06}" for number in range(start, end)]
    if name not in _SERVED:
        client.load({key: bytes(bytearray(VALUE)) for key in keys})
    client.hold(keys)
    for key in keys:
        client.get(client.key(key))


_SERVED = {OURS.name, PURE.name, "redis-py, client-side cache"}


def memory(run: Run) -> None:
    """Measure bytes per key, beyond the key and the value themselves.

    In a worker these two are Python objects, which a plain dict holds as well.
    """
    count = run.scale.memory_keys
    keys = names("memory", count + WARM)
    objects = sys.getsizeof(keys[0]) + sys.getsizeof(VALUE)
    for peer in run.peers("memory"):
        try:
            traced, grown = _of_a_cache(peer, keys, count)
        except Exception as error:
            run.skip("memory", peer.name, describe(error))
            continue
        beyond = [traced - objects]
        run.record("memory", peer.name, "bytes", beyond, {"counted": "by Python"})
        run.record("memory", peer.name, "bytes", [grown - objects], {"counted": "by the system"})
        if peer is OURS:
            run.goal("entry", beyond, [beyond], unit="bytes")
    raw = len(keys[0]) + len(VALUE)
    for peer in [OURS, *run.peers("memory_server")]:
        try:
            grown = _of_a_server(peer, keys)
        except Exception as error:
            run.skip("memory_server", peer.name, describe(error))
            continue
        run.record("memory_server", peer.name, "bytes", [grown - raw])


def _of_a_cache(peer: Peer, keys: list[str], count: int) -> tuple[float, float]:
    """Return the growth as Python counts its memory, and as the system does."""
    with peer.serve() as place:
        if peer.name in _SERVED:
            load(peer, place, keys)
        found = []
        for traced in (True, False):
            with (PureWorker if peer.pure else Worker)(idle, 0) as worker:
                found.append(float(worker.call(fill, peer.name, place, count, traced)))
        return found[0], found[1]


def _of_a_server(peer: Peer, keys: list[str]) -> float:
    with peer.serve() as place:
        load(peer, place, keys[:WARM])
        before = resident(place.pid)
        load(peer, place, keys[WARM:])
        return (resident(place.pid) - before) / (len(keys) - WARM)
