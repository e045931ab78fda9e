"""Latency of one hit, one miss and one confirmed deletion, each as a ratio to a reference.

The reference is measured in the same run, in turns with what it is compared to, since machines
are noisy and drift:

- a hit is compared with ``dict.get`` on a dict of as many keys, in the same process; both are
  asked with keys that are equal to those stored but not the same objects, and the time of the
  bare loop is taken off both;
- a miss (a key never read before, bound by another Node) and a DEL (confirmed by Nodes in other
  processes, which all hold the key) are compared with the round trip of a bare pyzmq
  DEALER/ROUTER echo between two processes, whose messages are as long as a GET and its reply.

Global, the echo and each holder run in a process of their own. Run it as
``python benchmarks/latency.py``; it takes about a quarter of a minute.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import zmq

import dstore
from dstore import wire
from dstore.messages import Found, Get, GetReply, Stored

VALUE = bytes(range(100))
HIT_KEYS = 10_000
HIT_ROUNDS = 100
MISS_BLOCK = 500
DELETE_BLOCK = 100
BLOCKS = 30
HOLDERS = (1, 3)
PATIENCE = 60.0
"""Seconds within which a process must have started, or the echo answered."""
ECHO_LOOK_MS = 200
"""How long the echo waits for a message before it looks whether it is still wanted."""


@dataclass
class Comparison:
    """Times of one operation in seconds, and of its reference, taken in turns."""

    name: str
    reference: str
    goal: float | None = None
    one_by_one: bool = True
    """Whether each operation was timed, and not the mean of many: only then p99 means anything."""
    times: list[float] = field(default_factory=list)
    reference_times: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        ours, theirs = sorted(self.times), sorted(self.reference_times)
        found: dict[str, Any] = {
            "name": self.name,
            "reference": self.reference,
            "samples": len(ours),
            "median_us": median(ours) * 1e6,
            "reference_median_us": median(theirs) * 1e6,
            "ratio": median(ours) / median(theirs),
            "goal": self.goal,
        }
        if self.one_by_one:
            found["p99_us"] = percentile(ours, 0.99) * 1e6
            found["reference_p99_us"] = percentile(theirs, 0.99) * 1e6
            found["p99_ratio"] = found["p99_us"] / found["reference_p99_us"]
        return found


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# Processes ------------------------------------------------------------------------------------


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Run ``target(connection, *arguments)`` in a process of its own; yields what it sends first.

    The process ends when its connection is closed.
    """
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    child = spawn.Process(target=isolated, args=(target, far, *arguments))
    child.start()
    far.close()
    try:
        if not near.poll(PATIENCE):
            raise TimeoutError(f"{target.__name__} did not start")
        yield near.recv()
    finally:
        near.close()
        child.join()
        child.close()


def isolated(target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    """Ctrl-C is for the parent alone, which then closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target(connection, *arguments)


def until_closed(connection: Connection) -> None:
    try:
        connection.recv()
    except EOFError:
        connection.close()


def global_process(connection: Connection) -> None:
    with dstore.Global("tcp://127.0.0.1:0") as running:
        connection.send(running.address)
        until_closed(connection)


def holder_process(connection: Connection, address: str, keys: list[str]) -> None:
    with dstore.Node(address) as node:
        connection.send(len(node.get_many(keys)))
        until_closed(connection)


def echo_process(connection: Connection, reply: bytes) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        connection.send(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        router.rcvtimeo = ECHO_LOOK_MS
        while True:
            try:
                route, _ = router.recv_multipart()
            except zmq.Again:
                if connection.poll():
                    return
                continue
            router.send_multipart((route, reply))


class Echo:
    """The client of the echo: its messages are as long as those of a GET of one key."""

    def __init__(self, stack: ExitStack, key: str) -> None:
        big = 1 << 62  # as long as an epoch
        found = Found(10_000, True, Stored(bytes(16), "bytes", VALUE))
        self._request = wire.encode(Get(big, 10, 10_000, [key]))
        reply = wire.encode(GetReply(big, 10, 10_000, [found]))
        address = stack.enter_context(process(echo_process, reply))
        context = stack.enter_context(zmq.Context())
        self._dealer = stack.enter_context(context.socket(zmq.DEALER))
        self._dealer.rcvtimeo = int(PATIENCE * 1000)
        self._dealer.linger = 0
        self._dealer.connect(address)

    def round_trip(self, _: object) -> None:
        self._dealer.send(self._request)
        self._dealer.recv()


# Measurements ---------------------------------------------------------------------------------


def timed(operation: Callable[[str], object], keys: Sequence[str]) -> list[float]:
    """The time of each operation."""
    times = []
    clock = time.perf_counter
    for key in keys:
        start = clock()
        operation(key)
        times.append(clock() - start)
    return times


def mean_time(operation: Callable[[str], object], keys: Sequence[str]) -> float:
    """The mean time of one of many operations that are too short to be timed one by one."""
    start = time.perf_counter()
    for key in keys:
        operation(key)
    called = time.perf_counter()
    for key in keys:  # noqa: B007  # the bare loop
        pass
    end = time.perf_counter()
    return ((called - start) - (end - called)) / len(keys)


def measure_hits(node: dstore.Node, rounds: int) -> Comparison:
    stored = {f"hit/{number:06}": VALUE for number in range(HIT_KEYS)}
    node.set_many(stored)
    node.get_many(stored)
    asked = [f"hit/{number:06}" for number in range(HIT_KEYS)]
    random.Random(1).shuffle(asked)
    result = Comparison("hit, 100 B", "dict.get", goal=5.0, one_by_one=False)
    misses = node.stats()["misses"]
    for _ in range(rounds):
        result.reference_times.append(mean_time(stored.get, asked))
        result.times.append(mean_time(node.get, asked))
    if node.stats()["misses"] != misses:
        raise RuntimeError("not every hit was a hit")
    return result


def in_turns(
    result: Comparison, blocks: Sequence[Sequence[str]], operation: Callable[[str], object],
    reference: Callable[[str], object],
) -> Comparison:  # fmt: skip
    """Blocks of the operation and of its reference, one after the other; the first warms up."""
    for number, keys in enumerate(blocks):
        theirs, ours = timed(reference, keys), timed(operation, keys)
        if number:
            result.reference_times += theirs
            result.times += ours
    return result


def measure_misses(node: dstore.Node, echo: Echo, keys: Sequence[Sequence[str]]) -> Comparison:
    misses = node.stats()["misses"]
    result = Comparison("miss, 100 B", "bare echo", goal=1.2)
    in_turns(result, keys, node.get, echo.round_trip)
    if node.stats()["misses"] - misses != sum(map(len, keys)):
        raise RuntimeError("not every miss was a miss")
    return result


def measure_deletions(
    node: dstore.Node, echo: Echo, keys: Sequence[Sequence[str]], holders: int
) -> Comparison:
    def delete(key: str) -> None:
        if node.delete(key) != (holders, 0, 0):
            raise RuntimeError(f"{key!r} was not confirmed by {holders} holders alone")

    name = f"DEL, {holders} holder{'s' if holders > 1 else ''}"
    return in_turns(Comparison(name, "bare echo"), keys, delete, echo.round_trip)


def key_blocks(kind: str, blocks: int, size: int) -> list[list[str]]:
    return [[f"{kind}/{block:03}/{number:03}" for number in range(size)] for block in range(blocks)]


def measure(blocks: int, rounds: int) -> list[Comparison]:
    """All comparisons, with ``blocks`` blocks and ``rounds`` rounds of each."""
    cold = key_blocks("cold", blocks + 1, MISS_BLOCK)
    held = {count: key_blocks(f"held{count}", blocks + 1, DELETE_BLOCK) for count in HOLDERS}
    with ExitStack() as stack:
        address = stack.enter_context(process(global_process))
        echo = Echo(stack, cold[0][0])
        with dstore.Node(address) as writer:
            for group in (cold, *held.values()):
                writer.set_many({key: VALUE for block in group for key in block})
        for index in range(max(HOLDERS)):
            mine = [key for n, group in held.items() if index < n for b in group for key in b]
            stack.enter_context(process(holder_process, address, mine))
        node = stack.enter_context(dstore.Node(address))
        node.join()
        return [
            measure_hits(node, rounds),
            measure_misses(node, echo, cold),
            *(measure_deletions(node, echo, keys, count) for count, keys in held.items()),
        ]


# Output ---------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    return {
        "dstore": dstore.__version__,
        "python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }


COLUMNS = {
    "": ("name", "{}"),
    "median us": ("median_us", "{:.3f}"),
    "p99 us": ("p99_us", "{:.0f}"),
    "reference": ("reference", "{}"),
    "its median": ("reference_median_us", "{:.3f}"),
    "its p99": ("reference_p99_us", "{:.0f}"),
    "ratio": ("ratio", "{:.2f}"),
    "of p99": ("p99_ratio", "{:.2f}"),
    "goal": ("goal", "{:g}"),
}


def table(results: Sequence[Comparison]) -> Iterator[str]:
    yield "".join(f"{title:>14}" for title in COLUMNS)
    for figures in (result.figures() for result in results):
        cells = [(figures.get(name), shown) for name, shown in COLUMNS.values()]
        yield "".join(f"{'-' if cell is None else shown.format(cell):>14}" for cell, shown in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of dstore as ratios to references.")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="how often to take turns")
    parser.add_argument("--rounds", type=int, default=HIT_ROUNDS, help="the same, for hits")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    results = measure(options.blocks, options.rounds)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print("\n".join(table(results)))
    if options.json:
        figures = [result.figures() for result in results]
        options.json.write_text(json.dumps({"machine": machine(), "results": figures}, indent=2))


if __name__ == "__main__":
    main()
