"""A pool of workers that share one configuration, and never work with an outdated one.

Every job reads the configuration: after the first time that is a look-up in the memory of the host
or of the worker. The parent replaces it a few times while the workers are busy, and deletes it in
the end, which tells the workers to stop. Once ``set(..., replace=True)`` or ``delete`` has
returned, no worker can read the old configuration any more: the times noted here prove it.

    python examples/shared_config.py [--address tcp://HOST:PORT] [--workers 4]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import dstore

TAX_RATES = [0.19, 0.16, 0.21, 0.2]
"""The tax rate of version 0, 1, 2, 3 of the configuration."""


def work(address: str, key: str, pipe: Connection) -> None:
    """Do jobs until the configuration is deleted. Report when each version was last read."""
    last_read: dict[int, int] = {}
    deleted: list[str | bytes] = []
    jobs = hits = 0
    with dstore.Node(address, label="price worker", on_deletion=deleted.append) as node:
        while True:
            start = time.monotonic_ns()  # one clock for all processes of a machine
            try:
                found = node.lookup(key)
            except dstore.KeyMissing:
                break
            config = found.value
            price(jobs, config["tax_rate"])
            if config["version"] not in last_read:
                pipe.send(config["version"])
            last_read[config["version"]] = start
            jobs, hits = jobs + 1, hits + found.from_local
    pipe.send(last_read)
    line = f"{jobs:,} jobs, {hits:,} configurations from memory, {len(deleted)} deletions\n"
    print(line, end="")  # one write, so that lines of workers do not mix


def price(job: int, tax_rate: float) -> float:
    """Return the price of article number ``job``: the job."""
    return round((job % 1000) * (1 + tax_rate), 2)


def change_while_they_work(node: dstore.Node, key: str, pipes: list[Connection]) -> list[int]:
    """Change the configuration whenever all workers use it. Return when each change ended."""
    over = []
    for version, tax_rate in enumerate(TAX_RATES):
        if version > 0:
            node.set(key, {"version": version, "tax_rate": tax_rate}, replace=True)
            over.append(time.monotonic_ns())
        for pipe in pipes:
            assert pipe.recv() == version
        print(f"all workers use version {version}")
    print(f"deleted: {node.delete(key)}")
    return [*over, time.monotonic_ns()]


@contextmanager
def some_global(address: str | None) -> Iterator[str]:
    """Yield the given address, or that of a Global that runs as long as the block."""
    if address:
        yield address
    else:
        with dstore.Global("tcp://127.0.0.1:0") as own:
            yield own.address


def main() -> None:
    parser = argparse.ArgumentParser(description="share a configuration that changes")
    parser.add_argument("--address", default=os.environ.get("DSTORE_GLOBAL"))
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()

    key, context = f"shared-config/{uuid.uuid4().hex}", multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    with some_global(args.address) as address, dstore.Node(address, label="prices") as node:
        node.set(key, {"version": 0, "tax_rate": TAX_RATES[0]})
        for _ in range(args.workers):
            ours, theirs = context.Pipe()
            context.Process(target=work, args=(address, key, theirs), daemon=True).start()
            theirs.close()  # so that a worker that dies ends its pipe
            pipes.append(ours)
        over = change_while_they_work(node, key, pipes)
        last_reads = [pipe.recv() for pipe in pipes]
        for process in multiprocessing.active_children():
            process.join()

    late = sum(last[version] > over[version] for last in last_reads for version in last)
    if late:
        raise SystemExit(f"an outdated configuration was read {late} times")
    print(f"{len(over)} changes, and after none of them was an outdated configuration read")


if __name__ == "__main__":
    main()
