"""First reads in a process of what another process of the same host has read already.

That other process has read each key twice, and stays. The keys were bound from another host, so
that they are in no cache of this one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.machine import compiled
from benchmarks.measure import Block, Contender, flat
from benchmarks.peers import BY_NAME, OURS, PURE, Client, Peer, connected
from benchmarks.peers.ours import OurClient
from benchmarks.processes import Place, PureWorker, Worker
from benchmarks.run import Run
from benchmarks.workloads.reads import BATCH, RATE, load, names, pure_block

REDIS = "redis-py"
REQUESTS = "host_requests"
"""The measurement of the keys that Global was asked for, of each key that was read."""
Read = Callable[[Client, list[Any]], Block]


def elsewhere(place: Place) -> Place:
    """Return a Place as a client of another host sees it, which shares nothing."""
    return place._replace(folder="")


def hold_twice(client: Client, keys: list[str]) -> None:
    """Read keys so often that every cache on the way keeps them."""
    client.hold(keys)
    for key in keys:
        client.get(client.key(key))


def first_reads(run: Run) -> None:
    """Measure single reads, 100 bytes: the mean of a block, since one is too short to be timed."""
    size = run.scale.first_reads
    blocks = _measured(run, "host_first", "s", size, each_alone)
    _compare(run, "host-first", blocks, "s")


def many_first_reads(run: Run) -> None:
    """Measure calls of ``get_many``: keys per second."""
    blocks = _measured(run, "host_many", RATE, BATCH * run.scale.batches, many_at_once)
    _compare(run, "host-many", blocks, RATE)


def each_alone(client: Client, keys: list[Any]) -> Block:
    return [client.mean_time(keys)]


def many_at_once(client: Client, keys: list[Any]) -> Block:
    rates = []
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        began = time.perf_counter()
        client.get_many(batch)
        rates.append(BATCH / (time.perf_counter() - began))
    return rates


def _measured(run: Run, workload: str, unit: str, size: int, read: Read) -> dict[str, list[Block]]:
    asked: dict[str, list[float]] = {}
    keys = names(workload, (run.each_sitting(run.scale.rounds) + 1) * size)

    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        place = stack.enter_context(peer.serve_on_host())
        load(peer, elsewhere(place), keys)
        if peer.caches:
            other = stack.enter_context(Worker(connected, peer, place))
            other.call(hold_twice, keys)
        settings = peer.name, place, keys, size, read
        if peer.pure:
            worker = stack.enter_context(PureWorker(reading, *settings)).ready()
            contender = Contender(peer.name, lambda number: list(worker.call(pure_block, number)))
        else:
            contender = stack.enter_context(reading(*settings))
        if not peer.caches:
            return contender
        observer = stack.enter_context(connected(OURS, elsewhere(place)))
        return _counting(contender, observer, size, asked.setdefault(peer.name, []))

    blocks = run.compete(workload, prepare, run.scale.rounds)
    for who, found in blocks.items():
        run.record(workload, who, unit, flat(found))
        if who in asked:
            run.record(REQUESTS, who, "keys", asked[who], {"what": workload})
    return blocks


@contextmanager
def reading(name: str, place: Place, keys: list[str], size: int, read: Read) -> Iterator[Contender]:
    """Yield a contender whose client reads, in each round, keys that are new to it."""
    with connected(BY_NAME[name], place) as client:
        asked = [client.key(key) for key in keys]
        yield Contender(
            name, lambda number: read(client, asked[number * size : (number + 1) * size])
        )


def _counting(contender: Contender, observer: Client, size: int, asked: list[float]) -> Contender:
    """Return the contender, and note for each round how many of its keys Global was asked for."""
    assert isinstance(observer, OurClient)
    node = observer.node

    def block(number: int) -> Block:
        before = node.global_stats()["gets"]
        samples = contender.block(number)
        asked.append((node.global_stats()["gets"] - before) / size)
        return samples

    return Contender(contender.name, block)


def _compare(run: Run, goal: str, blocks: dict[str, list[Block]], unit: str) -> None:
    if compiled():
        run.compare(goal, blocks, REDIS, unit)
    run.compare(f"{goal}-pure", blocks, REDIS, unit, PURE.name if compiled() else OURS.name)
