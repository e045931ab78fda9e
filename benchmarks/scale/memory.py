"""Memory of Global's objects: sessions, holder bits, the invalidation log, and connections."""

from __future__ import annotations

import gc
import os
import secrets
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import zmq

from benchmarks.processes import Worker, resident
from benchmarks.scale.cluster import EPOCH, LABEL
from benchmarks.scale.socket_costs import with_peers
from dstore.config import CLIENTS_MAX, LARGE_FROM_DEFAULT, LEASE_DEFAULT, LOG_LENGTH_DEFAULT
from dstore.core.authority.holders import Holders
from dstore.core.authority.invalidations import InvalidationLog
from dstore.core.authority.state import GlobalState
from dstore.protocol.messages import Hello
from dstore.server.engines.memory import MemoryEngine
from dstore.shm.bulk import PrivateBulk


def weighed(make: Callable[[], Any]) -> int:
    """Return the bytes of what ``make`` returns, with all that only it refers to."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = make()
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return taken


def sessions(count: int) -> float:
    """Return the bytes of one of ``count`` sessions, with its bit and its route."""

    def make() -> GlobalState:
        state = GlobalState(
            MemoryEngine(),
            PrivateBulk(),
            epoch=EPOCH,
            publisher="tcp://*:50052",
            lease=LEASE_DEFAULT,
            log_length=LOG_LENGTH_DEFAULT,
            value_limit=1 << 30,
            large_from=LARGE_FROM_DEFAULT,
            random63=partial(secrets.randbits, 63),
            wall=time.time,
            max_clients=CLIENTS_MAX,
        )
        for number in range(count):
            label = f"{LABEL}-{number}"  # each has one of its own
            state.receive(
                number.to_bytes(5, "big"), Hello(number.to_bytes(16, "big"), 0, 0, label), 0.0
            )
        return state

    return weighed(make) / count


def holder_bits(locals_: int, holding: int, keys: int) -> float:
    """Return the bytes of one key's bits, if the last ``holding`` Locals have its value.

    The key itself belongs to the engine.
    """
    names = [f"config/{number:06}" for number in range(keys)]
    bits = Holders()
    claimed = [bits.claim() for _ in range(locals_)]

    def make() -> Holders:
        for name in names:
            for bit in claimed[locals_ - holding :]:
                bits.add(name, bit)
        return bits

    return weighed(make) / keys


def log_entry(length: int) -> float:
    """Return the bytes of one deletion in a full log, with its key of 16 characters."""

    def make() -> InvalidationLog:
        log = InvalidationLog(length)
        for number in range(length):
            log.append(f"config/{number:09}")
        return log

    return weighed(make) / length


def grown_by_peers(_: None, count: int) -> int:
    """Return how much this process grows with ``count`` DEALERs and as many subscribers."""
    before = resident(os.getpid())
    with with_peers(count):
        return resident(os.getpid()) - before


def connections(count: int) -> int:
    """Return how much a new process grows with ``count`` peers."""
    with Worker(nullcontext) as worker:
        grown: int = worker.call(grown_by_peers, count)
        return grown


def measure(sizes: Sequence[int], quick: bool) -> dict[str, Any]:
    keys = 20 if quick else 200
    few, many = (10, 50) if quick else (100, 500)
    grown = (connections(many) - connections(few)) / (many - few) / 2
    return {
        "libzmq": zmq.zmq_version(),
        "session_bytes": {str(size): sessions(size) for size in sizes},
        "holder_bits": [
            {"locals": size, "holding": holding, "bytes": holder_bits(size, holding, keys)}
            for size in sizes
            for holding in sorted({1, max(1, size // 10), size})
        ],
        "log_entry_bytes": log_entry(LOG_LENGTH_DEFAULT),
        "log_length": LOG_LENGTH_DEFAULT,
        "connection_bytes": max(0.0, grown),
    }
