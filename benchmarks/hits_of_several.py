"""What a hit costs a Node of several Globals, beside a Node of one.

``python -m benchmarks.hits_of_several [--globals N] [--rounds R]`` starts one Global and the
members of a cluster in threads of this process, and a Node for each of the two. Both read the same
keys from their caches, in turns, and not in the order in which they were stored: with one Global
that is the order of memory, which no program keeps to. It prints the medians of the rounds and
their ratio. No database is needed: a hit asks nobody.
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median

import dstore
from dstore.compiled import native
from dstore.testing import running_global
from tests.integration.members import cluster_of

KEYS = (500, 10_000)
READS = 20_000
"""Reads of a round, at least."""


def main() -> None:
    parser = argparse.ArgumentParser(description="hits of a Node of several Globals")
    parser.add_argument("--globals", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    with (
        running_global(lease=60.0, shm=None) as server,
        cluster_of(options.globals, lease=60.0) as cluster,
        dstore.Node(server.address, host="off") as one,
        dstore.Node(cluster.address, host="off") as several,
    ):
        print(f"reads {'compiled' if native is not None else 'in Python'}")
        print(f"{'keys':>8} {'one, ns':>10} {f'of {options.globals}, ns':>10} {'ratio':>6}")
        for count in KEYS:
            keys = [f"{count}-{number}" for number in range(count)]
            for node in (one, several):
                node.set_many(dict.fromkeys(keys, 1))
                node.get_many(keys)
            random.Random(count).shuffle(keys)
            rounds = [(_hit(one, keys), _hit(several, keys)) for _ in range(options.rounds)]
            alone, among = (median(each) for each in zip(*rounds))
            print(f"{count:>8,} {alone:>10.0f} {among:>10.0f} {among / alone:>6.2f}")


def _hit(node: dstore.Node, keys: list[str]) -> float:
    """Return the nanoseconds of a hit. Raises AssertionError if one of these was none."""
    repeats = max(1, READS // len(keys))
    misses = node.stats()["misses"]
    get = node.get
    start = time.perf_counter_ns()
    for _ in range(repeats):
        for key in keys:
            get(key)
    spent = time.perf_counter_ns() - start
    assert node.stats()["misses"] == misses
    return spent / repeats / len(keys)


if __name__ == "__main__":
    main()
