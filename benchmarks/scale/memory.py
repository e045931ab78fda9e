"""What Global's objects weigh: sessions, holder bits, the deletion log, and a connection."""

from __future__ import annotations

import gc
import multiprocessing
import os
import secrets
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq

from benchmarks.scale.cluster import EPOCH, LABEL
from benchmarks.scale.socket_costs import with_peers
from dstore.config import CLIENTS_MAX, LARGE_FROM_DEFAULT, LEASE_DEFAULT, LOG_LENGTH_DEFAULT
from dstore.core.authority.holders import Holders
from dstore.core.authority.log import InvalidationLog
from dstore.core.authority.state import GlobalState
from dstore.protocol.messages import Hello
from dstore.server.engines.memory import MemoryEngine
from dstore.shm.private_bulk import PrivateBulk


def weighed(make: Callable[[], Any]) -> int:
    """Bytes of what ``make`` returns, with all that it alone refers to."""
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
    """Bytes of one of so many sessions, bit and route included."""

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
    """Bytes of one key's bits, when the ``holding`` Locals that joined last have its value.

    The key itself is the engine's.
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
    """Bytes of one deletion in a log that is full; a key of 16 characters included."""

    def make() -> InvalidationLog:
        log = InvalidationLog(length)
        for number in range(length):
            log.append(f"config/{number:09}")
        return log

    return weighed(make) / length


def resident() -> int:
    """Bytes of this process's memory, or 0 where that cannot be told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _connections(report: Connection, count: int) -> None:
    with ExitStack() as stack:
        before = resident()
        stack.enter_context(with_peers(count))
        report.send(resident() - before)


def connections(count: int) -> int:
    """How much a process grows that has so many DEALERs and as many subscribers."""
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    child = spawn.Process(target=_connections, args=(far, count))
    child.start()
    far.close()
    grown: int = near.recv()
    near.close()
    child.join()
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
