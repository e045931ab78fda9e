"""Reading in one process: hits, misses, many keys at once."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from statistics import median
from typing import Any

from benchmarks.machine import compiled
from benchmarks.measure import Block, Contender, flat
from benchmarks.peers import BY_NAME, ECHO, OURS, PURE, Client, Peer, connected
from benchmarks.peers.ours import OurClient
from benchmarks.processes import Place, PureWorker
from benchmarks.run import Run
from benchmarks.settings import HOT_KEYS, VALUE

BATCH = 100
"""Keys in one ``get_many``."""
BLOCK_SECONDS = 0.02
"""How long a block of slow hits should take."""
TRIAL = 20
RATE = "1/s"


def names(kind: str, count: int, start: int = 0) -> list[str]:
    return [f"{kind}/{number:06}" for number in range(start, start + count)]


def load(peer: Peer, place: Place, keys: list[str]) -> None:
    """Bind keys with a client that then leaves, so that the keys have no holder."""
    with connected(peer, place) as loader:
        loader.load({key: bytes(bytearray(VALUE)) for key in keys})


def reader(stack: ExitStack, peer: Peer, keys: list[str]) -> Client:
    """Return a client that has read nothing yet, of a server that has the keys."""
    place = stack.enter_context(peer.serve())
    load(peer, place, keys)
    return stack.enter_context(connected(peer, place))


def hits(run: Run) -> None:
    """Measure reads of a key that this process has read before, 100 bytes."""
    peers = run.peers("hit")
    for keys in run.scale.hit_keys:
        _hits_of(run, peers, keys)


def _hits_of(run: Run, peers: Sequence[Peer], keys: int) -> None:
    blocks = hits_of(run, "hit", peers, keys)
    goal = "hot" if keys == HOT_KEYS else "hit"
    if compiled():
        run.compare(goal, blocks, "dict")
        run.compare(f"{goal}-lru", blocks, "functools.lru_cache")
    run.compare(f"{goal}-pure", blocks, "dict", who=PURE.name if compiled() else OURS.name)
    run.compare(f"{goal}-redis", blocks, "redis-py, client-side cache")


def hits_of(run: Run, workload: str, peers: Sequence[Peer], keys: int) -> dict[str, list[Block]]:
    """Measure and record hits of this number of keys. Returns the blocks of each peer."""

    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        place = stack.enter_context(peer.serve())
        settings = peer.name, place, keys, run.scale.hits
        if not peer.pure:
            return stack.enter_context(hitting(*settings))
        worker = stack.enter_context(PureWorker(hitting, *settings)).ready()
        return Contender(peer.name, lambda number: list(worker.call(pure_block, number)))

    blocks = run.compete(workload, prepare, run.scale.rounds, peers)
    for who, found in blocks.items():
        run.record(workload, who, "s", flat(found), {"keys": keys})
    return blocks


@contextmanager
def hitting(name: str, place: Place, keys: int, hits: int) -> Iterator[Contender]:
    """Yield a contender that reads keys which its client has read, over and over.

    There are as many hits in a block as given, or fewer if they are slow.
    """
    peer = BY_NAME[name]
    with connected(peer, place) as client:
        count = min(keys, _fitting(client, _held(client, "trial", TRIAL)))
        asked = _held(client, "hit", count)
        size = min(hits, _fitting(client, asked[:TRIAL]))  # of many it may be slower than of few
        asked *= math.ceil(hits / count)
        parts = cycle(asked[start : start + size] for start in range(0, hits - size + 1, size))
        yield _checked(peer, client, 0, lambda _: [client.mean_time(next(parts))])


def pure_block(contender: Contender, number: int) -> Block:
    """Run a block in a process that must not have the compiled part."""
    if compiled():
        raise RuntimeError("the process of pure Python runs the compiled part")
    return contender.block(number)


def _fitting(client: Client, keys: list[Any]) -> int:
    """Return how many hits fit into a block."""
    return max(TRIAL, int(BLOCK_SECONDS / median(client.timed(keys))))


def _checked(peer: Peer, client: Client, misses: int, block: Callable[[int], Block]) -> Contender:
    """Return a contender that fails if dstore has counted another number of misses."""
    if not isinstance(client, OurClient):
        return Contender(peer.name, block)

    def counted(number: int) -> Block:
        before = client.node.stats()["misses"]
        samples = block(number)
        if (found := client.node.stats()["misses"] - before) != misses:
            raise RuntimeError(f"there were {found} misses, and not {misses}")
        return samples

    return Contender(peer.name, counted)


def _held(client: Client, kind: str, count: int) -> list[Any]:
    """Bind and read keys. Returns them in another order."""
    client.load({key: bytes(bytearray(VALUE)) for key in names(kind, count)})
    # They are equal to those stored, but not the same objects.
    asked = [client.key(name) for name in names(kind, count)]
    random.Random(1).shuffle(asked)
    client.timed(asked)
    return asked


def misses(run: Run) -> None:
    """Measure reads of a key that this process has never read; another client has bound it."""
    run.compare("miss", misses_of(run, "miss"), ECHO.name)


def misses_of(run: Run, workload: str) -> dict[str, list[Block]]:
    """Measure and record such reads of the peers of a workload. Returns their blocks."""
    size = run.scale.block
    keys = names("miss", (run.scale.rounds + 1) * size)

    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        client = reader(stack, peer, keys)
        asked = [client.key(name) for name in keys]

        def block(number: int) -> Block:
            return client.timed(asked[number * size : (number + 1) * size])

        return _checked(peer, client, size, block)

    blocks = run.compete(workload, prepare, run.scale.rounds)
    for who, found in blocks.items():
        run.record(workload, who, "s", flat(found), tail=True)
    return blocks


def batches(run: Run) -> None:
    """Measure calls for a hundred keys that were never read before: keys per second."""
    size = BATCH * run.scale.batches
    keys = names("many", (run.scale.rounds + 1) * size)

    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        client = reader(stack, peer, keys)
        asked = [client.key(name) for name in keys]

        def block(number: int) -> Block:
            rates = []
            for start in range(number * size, (number + 1) * size, BATCH):
                batch = asked[start : start + BATCH]
                began = time.perf_counter()
                client.get_many(batch)
                rates.append(BATCH / (time.perf_counter() - began))
            return rates

        return _checked(peer, client, size, block)

    blocks = run.compete("get_many", prepare, run.scale.rounds)
    for who, found in blocks.items():
        run.record("get_many", who, RATE, flat(found))
    run.compare("get_many", blocks, "redis-py", RATE)
