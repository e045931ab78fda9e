"""How many writes a second a member commits, beside what the database itself does.

``python -m benchmarks.postgres [--seconds S] [--bytes B]`` starts a primary and a synchronous
standby on this machine, and ends them. For each number of writes in a statement it prints

- *database*: the fenced statement of the journal, executed in a loop over one connection;
- *journal*: the same through a :class:`~dstore.server.postgres.store.Store`, whose thread groups
  single writes, with so many of them under way at a time.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import time
from collections.abc import Callable, Iterator

from dstore.core.engine import Change, ChangeKind
from dstore.protocol.messages import Stored
from dstore.protocol.partitions import PARTITIONS
from dstore.server.postgres import init, schema, writing
from dstore.server.postgres.connections import Target
from tests.integration.stores import Owner
from tests.postgres import Postgres

SIZES = (1, 10, 100, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description="writes a second through a member's journal")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each figure")
    parser.add_argument("--bytes", type=int, default=100, help="of each value")
    options = parser.parse_args()
    numbers = itertools.count()

    def changes(count: int) -> list[Change]:
        body = bytes(options.bytes)
        return [
            Change(
                ChangeKind.BIND,
                f"key/{next(numbers)}",
                stored=Stored(secrets.token_bytes(16), "bytes", body),
            )
            for _ in range(count)
        ]

    with Postgres(standby=True) as servers:
        url = servers.url()
        init(url)
        with Owner(url) as owner:
            owner.join()
            owner.claim()
            print(f"{'under way':>10} {'database/s':>12} {'journal/s':>12} {'ratio':>7}")
            for size in SIZES:
                alone = rate(statements(url, owner, size, changes), options.seconds)
                journal = rate(batches(owner, size, changes), options.seconds)
                print(f"{size:>10,} {alone:>12,.0f} {journal:>12,.0f} {journal / alone:>7.2f}")


def rate(done: Iterator[int], seconds: float) -> float:
    """Return how many writes are done in a second."""
    next(done)
    start = time.perf_counter()
    end = start + seconds
    count = 0
    while time.perf_counter() < end:
        count += next(done)
    return count / (time.perf_counter() - start)


def statements(
    url: str, owner: Owner, size: int, changes: Callable[[int], list[Change]]
) -> Iterator[int]:
    """Execute the fenced statement again and again; yields the writes of each."""
    rows = owner.ask().partitions
    target = Target(url, 10.0)
    with target.connect() as connection:
        target.prepare(connection)
        standby = schema.check(connection, target.where)
        while True:
            batch = changes(size)
            fences = {number: rows[number].fence for number in writing.touched(batch)}
            assert len(fences) <= PARTITIONS
            assert not any(
                writing.apply(connection, writing.Fences(owner.me, fences, standby), batch)
            )
            yield size


def batches(owner: Owner, size: int, changes: Callable[[int], list[Change]]) -> Iterator[int]:
    """Keep so many single writes under way; yields how many have ended each time."""
    owner.begin(*changes(1))
    under_way = 1
    while True:
        for change in changes(size - under_way):
            owner.begin(change)
        under_way = size
        owner.woken.wait()
        owner.woken.clear()
        ended = owner.store.committed()
        under_way -= len(ended)
        yield len(ended)


if __name__ == "__main__":
    main()
