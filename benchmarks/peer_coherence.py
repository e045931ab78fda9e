"""Stale reads under faults: dstore, and redis-py's client-side cache in the same workload.

Readers, each a process with a cache of its own, read a few keys over and over. A writer deletes one
key after the other, notes when each deletion was confirmed, and binds the key to a value that never
was before. A read is *stale* if it began after the deletion of its value had been confirmed.
Meanwhile a relay delays, cuts or stalls the connections of the readers. The writer's own connection
is direct and undisturbed.

How redis-py (8.1) keeps its cache: no thread listens. The server sends invalidations on the
connection that fetched the value. Before each command redis-py reads what has arrived there,
without waiting; then it answers from the cache without asking. So an invalidation counts from the
next read after it has *arrived*. A connection that is found closed empties the cache. A silent one
does not: ``health_check_interval`` sends its PING along with commands, and a hit sends none. Redis
promises no more: its reference of client-side caching warns of stale data when the connection is
lost, and advises clients to empty the cache then, and to send PINGs. So it is measured twice: as
its guides configure it (RESP3, ``CacheConfig()``, a health check), and in a program that also sends
a PING each second and waits 1 s for the answer ("redis-py + ping"). Each reader has one thread, and
so redis-py has one connection.

Run it as ``python -m benchmarks.peer_coherence`` at the project's root, on Linux. Redis' half needs
the package ``redis`` (``pip install -e .[peers]``) and a ``redis-server``, and is left out where
they are missing. It takes two to three minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dstore
from benchmarks import machine
from benchmarks.peers.base import module, wanting
from benchmarks.peers.over_redis import SERVER, TRACKING_SINCE
from benchmarks.processes import Worker, program
from dstore import config
from tests.faults.proxy import GLOBAL_HOST, PATHS, Proxy, Rule
from tests.integration.processes import PATIENCE, GlobalProcess, free_port

OURS, REDIS, REDIS_PING = SYSTEMS = ("dstore", "redis-py", "redis-py + ping")
RELAY_HOST = "127.0.0.2"
KEYS = [f"peer/{number}" for number in range(8)]
READERS = 3
BURST_NS = 100_000
"""A reader goes through all keys again and again for this long, and then rests."""
REST = 0.0005
HEALTH_CHECK = PING_SECONDS = 1
HEADSTART = 0.2
SECONDS_DEFAULT, SECONDS_MAX = 5.0, 30.0
CACHE_SINCE = (7, 4)
"""The version of Redis that redis-py asks for."""


class Scenario(NamedTuple):
    """What the relay does, in which part of the run, and how long the writer rests each time."""

    name: str
    relay: bool = True
    rule: Rule = Rule()
    begin: float = 0.0
    end: float = 1.0
    pause: float = 0.1

    def paths(self, system: str) -> Sequence[Sequence[str]]:
        """Return the sets of paths to disturb, one after the other. Redis has one path for all."""
        if not self.rule.kind:
            return [()]
        return [PATHS[:1], PATHS[1:], PATHS] if system == OURS else [PATHS[:1]]


SCENARIOS = (
    Scenario("no fault, no relay", relay=False),
    Scenario("no fault"),
    # The relay lets 20 messages a second pass: a pause that leaves time to fetch what was deleted.
    Scenario("50 ms late", rule=Rule("delay", 0.05, "to_local"), pause=0.25),
    Scenario("cut", rule=Rule("cut"), begin=0.3, end=0.5),
    Scenario("half-open", rule=Rule("stall"), begin=0.2, end=0.8),
)


@dataclass
class CaseResult:
    """What one system did in one scenario. Times are milliseconds."""

    scenario: str
    system: str
    disturbed: str
    reads: int
    hits: int
    failed: int
    slowest_read: float
    deletions: int
    slowest_deletion: float
    stale: int
    longest_stale: float


# The two systems -------------------------------------------------------------------------------


def connect(system: str, host: str, port: int, cached: bool = True) -> Any:
    """Return a Node, or a client of Redis."""
    if system == OURS:
        node = dstore.Node(f"tcp://{host}:{port}")
        node.join(PATIENCE)
        return node
    redis, options = module("redis"), {}
    if cached:
        module("redis.connection").CacheProxyConnection.MIN_ALLOWED_VERSION = TRACKING_SINCE
        options["cache_config"] = module("redis.cache").CacheConfig()
        options["health_check_interval"] = HEALTH_CHECK
    if system == REDIS_PING:
        options["socket_timeout"] = PING_SECONDS
    client = redis.Redis(host=host, port=port, protocol=3, **options)
    client.ping()
    return client


def failures(system: str) -> tuple[type[Exception], ...]:
    """Return what a read may raise while the server cannot be reached."""
    if system == OURS:
        return (dstore.DstoreError,)
    return (module("redis").RedisError, OSError)


def serve(system: str, port: int) -> AbstractContextManager[object]:
    """Run a Global, or a Redis that saves nothing."""
    if system == OURS:
        return GlobalProcess(f"tcp://{GLOBAL_HOST}:{port}", config.LEASE_DEFAULT)
    return program(SERVER, port)


# The workload ----------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What a reader saw. ``log`` has, in turns, when a read began and the value that it gave."""

    log: bytes
    reads: int
    hits: int
    failed: int
    slowest_ns: int


class Written(NamedTuple):
    """When the deletion of each value was confirmed."""

    confirmed: dict[int, int]
    slowest_ns: int


def connected(system: str, host: str, port: int) -> AbstractContextManager[Any]:
    """A client, closed at the end."""
    return closing(connect(system, host, port))


def read(client: Any, system: str, start: int, end: int) -> Seen:
    """Read from ``start`` to ``end``."""
    log = array("q")
    reads = failed = slowest = 0
    get = partial(client.get, default=None) if system == OURS else client.get
    raised, clock = failures(system), time.monotonic_ns
    ping_at = start + int(random.random() * PING_SECONDS * 1e9) if system == REDIS_PING else end
    sleep_until(start)
    while (now := clock()) < end:
        rest_at = now + BURST_NS
        try:
            if now >= ping_at:
                client.ping()
                ping_at = clock() + int(PING_SECONDS * 1e9)
                slowest = max(slowest, clock() - now)  # no read happens meanwhile
            while now < rest_at:
                for key in KEYS:
                    now = clock()
                    value = get(key)
                    if (took := clock() - now) > slowest:
                        slowest = took
                    reads += 1
                    if value is not None:
                        log.extend((now, int(value)))
        except raised:
            failed += 1
            slowest = max(slowest, clock() - now)
        time.sleep(REST)
    hits = client.stats()["hits"] if system == OURS else 0
    return Seen(log.tobytes(), reads, hits, failed, slowest)


def write(client: Any, start: int, end: int, pause: float) -> Written:
    """Delete each key in turn and bind it again, from ``start`` to ``end``."""
    number = slowest = 0
    confirmed = {}
    sleep_until(start)
    while (begin := time.monotonic_ns()) < end:
        key = KEYS[number % len(KEYS)]
        client.delete(key)
        confirmed[number] = done = time.monotonic_ns()
        slowest = max(slowest, done - begin)
        client.set(key, b"%d" % (number + len(KEYS)))
        number += 1
        time.sleep(pause)
    return Written(confirmed, slowest)


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, (moment - time.monotonic_ns()) / 1e9))


def staleness(log: bytes, confirmed: dict[int, int]) -> list[int]:
    """Return by how many nanoseconds each stale read was late."""
    entries = array("q", log)
    pairs = zip(entries[::2], entries[1::2])
    ends = ((start, confirmed.get(value, start)) for start, value in pairs)
    return [start - end for start, end in ends if start > end]


def run(system: str, scenario: Scenario, paths: Sequence[str], seconds: float) -> CaseResult:
    port, host = free_port(), RELAY_HOST if scenario.relay else GLOBAL_HOST
    with ExitStack() as stack:
        stack.enter_context(serve(system, port))
        relay = stack.enter_context(Proxy(port, [RELAY_HOST])) if scenario.relay else None
        client = stack.enter_context(closing(connect(system, GLOBAL_HOST, port, cached=False)))
        for number, key in enumerate(KEYS):
            client.set(key, b"%d" % number)
        readers = [
            stack.enter_context(Worker(connected, system, host, port)).ready()
            for _ in range(READERS)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(1))
        start = time.monotonic_ns() + int(HEADSTART * 1e9)
        span = (start, start + int(seconds * 1e9))
        writing = pool.submit(write, client, *span, scenario.pause)
        for reader in readers:
            reader.begin(read, system, *span)
        for share, rule in ((scenario.begin, scenario.rule), (scenario.end, Rule())):
            sleep_until(start + share * seconds * 1e9)
            for path in paths:
                assert relay is not None
                relay.disturb(RELAY_HOST, path, rule)
        written = writing.result()
        seen: list[Seen] = [reader.result() for reader in readers]
        reads, hits = sum(each.reads for each in seen), sum(each.hits for each in seen)
        if system != OURS:  # a read was a hit if the server was not asked
            asked = client.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"]
            hits = max(0, reads - asked)
    late = [each for one in seen for each in staleness(one.log, written.confirmed)]
    return CaseResult(
        scenario.name, system, " + ".join(paths) or "-",
        reads, hits, sum(each.failed for each in seen), max(one.slowest_ns for one in seen) / 1e6,
        len(written.confirmed), written.slowest_ns / 1e6, len(late), max(late, default=0) / 1e6,
    )  # fmt: skip


# Output ----------------------------------------------------------------------------------------

HEADING = (
    "scenario", "system", "disturbed", "reads", "hits", "failed", "slowest ms",
    "deletions", "slowest ms", "stale reads", "longest ms",
)  # fmt: skip
LINE = "{:18} {:15} {:20} {:>9} {:>9} {:>6} {:>10} {:>9} {:>10} {:>11} {:>10}"


def line(row: CaseResult) -> str:
    cells = asdict(row).values()
    return LINE.format(*(f"{cell:.1f}" if isinstance(cell, float) else cell for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description="Stale reads of dstore and of redis-py's cache.")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS_DEFAULT,
        help="the length of each run (default: %(default)g)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the numbers to this file, too"
    )
    options = parser.parse_args()
    if not 1 <= options.seconds <= SECONDS_MAX:
        parser.error(f"--seconds is from 1 to {SECONDS_MAX:g}")
    lacks = wanting(["redis"], ["redis-server"])
    if lacks:
        print(f"Redis' half is left out, which needs {lacks}.")
    about = machine.versions()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if not lacks and tuple(map(int, about["redis-server"].split(".")[:2])) < CACHE_SINCE:
        print("redis-py's cache asks for Redis 7.4; that check has been relaxed.")
    print(LINE.format(*HEADING))
    rows = []
    for scenario in SCENARIOS:
        for system in SYSTEMS[: 1 if lacks else None]:
            for paths in scenario.paths(system):
                rows.append(run(system, scenario, paths, options.seconds))
                print(line(rows[-1]), flush=True)
    ran = dict.fromkeys(row.system for row in rows)
    totals = {name: sum(row.stale for row in rows if row.system == name) for name in ran}
    print("Stale reads in all:", ", ".join(f"{name} {count}" for name, count in totals.items()))
    if options.json:
        numbers = {"versions": about, "rows": [asdict(row) for row in rows], "stale": totals}
        options.json.write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
