"""How many writes a second a cluster commits, beside what its database itself does.

``python -m benchmarks.postgres [--seconds S] [--rounds N] [--bytes B] [--globals N]`` starts a
primary and a synchronous standby on this machine, and Globals, and ends them. For each number of
writes that are under way at a time it prints the median of some rounds, in which these take turns:

- *database*: the fenced statement of the journal, executed in a loop over one connection;
- *journal*: single writes through a :class:`~dstore.server.postgres.store.Store`, which groups
  them;
- *cluster*: SETs of a Node, one ``set`` or one ``set_many`` after the other.

Then the same for single writes of some clients, which are threads of one process: each of them
executes the fenced statement over a connection of its own, or sets a key.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from statistics import median
from typing import TypeAlias

import dstore
from dstore.core.engine import Change, ChangeKind
from dstore.protocol.messages import Stored
from dstore.server.postgres import init, schema, status, writing
from dstore.server.postgres.connections import Target
from dstore.testing import global_process
from tests.integration.stores import Owner
from tests.postgres import Postgres

SIZES = (1, 10, 100, 1000)
CLIENTS = (1, 4, 16)

Run: TypeAlias = Generator[int, None, None]
"""Yields each time how many writes have been done."""

numbers = itertools.count()


def main() -> None:
    parser = argparse.ArgumentParser(description="writes a second through a cluster")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each figure and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=100, help="of each value")
    parser.add_argument("--globals", type=int, default=2)
    options = parser.parse_args()
    body = bytes(options.bytes)
    with ExitStack() as stack:
        servers = stack.enter_context(Postgres(standby=True))
        other = stack.enter_context(servers.database())  # two clusters, in two databases
        alone, shared = servers.url(), servers.url(other)
        init(alone)
        init(shared)
        owner = stack.enter_context(Owner(alone))
        owner.join()
        owner.claim()
        address = ""
        for _ in range(options.globals):
            address = stack.enter_context(global_process("--engine", shared)).address
        node = stack.enter_context(dstore.Node(address))
        settle(shared, options.globals)
        head = ("under way", "database/s", "journal/s", "ratio", "cluster/s", "ratio")
        print("{:>10} {:>12} {:>12} {:>6} {:>12} {:>6}".format(*head))
        for size in SIZES:
            each = [
                [statements(alone, owner, size, body)],
                [batches(owner, size, body)],
                [sets(node, size, body)],
            ]
            database, journal, cluster = measure(each, options.seconds, options.rounds)
            print(
                f"{size:>10,} {database:>12,.0f} {journal:>12,.0f} {journal / database:>6.2f} "
                f"{cluster:>12,.0f} {cluster / database:>6.2f}"
            )
        print("{:>10} {:>12} {:>32} {:>6}".format("clients", "database/s", "cluster/s", "ratio"))
        for count in CLIENTS:
            each = [
                [statements(alone, owner, 1, body) for _ in range(count)],
                [sets(node, 1, body) for _ in range(count)],
            ]
            database, cluster = measure(each, options.seconds, options.rounds)
            print(f"{count:>10,} {database:>12,.0f} {cluster:>32,.0f} {cluster / database:>6.2f}")


def measure(runs: list[list[Run]], seconds: float, rounds: int) -> list[float]:
    """Return the median rates of some runs that take turns. Each is one or several threads."""
    found = [[rate(run, seconds) for run in runs] for _ in range(rounds)]
    for run in runs:
        for each in run:
            each.close()
    return [median(rates) for rates in zip(*found)]


def settle(url: str, count: int) -> None:
    """Wait until each of ``count`` members owns its share."""
    while True:
        owners = {row.owner for row in status(url).partitions}
        if None not in owners and len(owners) == count:
            return
        time.sleep(0.1)


def changes(count: int, body: bytes) -> list[Change]:
    """Return changes that bind keys that are new."""
    return [
        Change(
            ChangeKind.BIND,
            f"key/{next(numbers)}",
            stored=Stored(secrets.token_bytes(16), "bytes", body),
        )
        for _ in range(count)
    ]


def rate(run: list[Run], seconds: float) -> float:
    """Return how many writes are done in a second, by a thread for each member of ``run``."""
    counts: list[int] = []
    for each in run:
        next(each)
    start = time.perf_counter()

    def work(each: Run) -> None:
        count = 0
        while time.perf_counter() < start + seconds:
            count += next(each)
        counts.append(count)

    threads = [threading.Thread(target=work, args=[each]) for each in run]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def statements(url: str, owner: Owner, size: int, body: bytes) -> Run:
    """Execute the fenced statement again and again; yields the writes of each."""
    rows = owner.ask().partitions
    target = Target(url, 10.0)
    with closing(target.connect()) as connection:
        target.prepare(connection)
        standby = schema.check(connection, target.where).standby
        while True:
            batch = changes(size, body)
            fences = {number: rows[number].fence for number in writing.touched(batch)}
            assert not any(
                writing.apply(connection, writing.Fences(owner.me, fences, standby), batch)
            )
            yield size


def sets(node: dstore.Node, size: int, body: bytes) -> Run:
    """Set ``size`` keys at a time."""
    while True:
        if size == 1:
            node.set(f"key/{next(numbers)}", body)
        else:
            assert not node.set_many({f"key/{next(numbers)}": body for _ in range(size)})
        yield size


def batches(owner: Owner, size: int, body: bytes) -> Run:
    """Keep ``size`` single writes under way; yields how many have ended each time."""
    owner.begin(*changes(1, body))
    under_way = 1
    while True:
        for change in changes(size - under_way, body):
            owner.begin(change)
        under_way = size
        owner.woken.wait()
        owner.woken.clear()
        ended = owner.store.committed()
        under_way -= len(ended)
        yield len(ended)


if __name__ == "__main__":
    main()
