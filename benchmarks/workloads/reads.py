"""Reading in one process: hits, misses, many keys at once."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

from benchmarks.measure import Contender, flat, paired
from benchmarks.peers import ECHO, OURS, Client, Peer, connected
from benchmarks.processes import Place
from benchmarks.run import Run
from benchmarks.settings import VALUE

BATCH = 100
"""Keys in one ``get_many``."""
BLOCK_SECONDS = 0.02
"""What a block of hits is meant to take, of those that are slow."""
TRIAL = 20
RATE = "1/s"


def names(kind: str, count: int) -> list[str]:
    return [f"{kind}/{number:06}" for number in range(count)]


def load(peer: Peer, place: Place, keys: list[str]) -> None:
    """Bind keys by a client that then leaves, so that nobody holds them."""
    with connected(peer, place) as loader:
        loader.load({key: bytes(bytearray(VALUE)) for key in keys})


def started(
    stack: ExitStack, peer: Peer, keys: list[str], fresh: bool = True
) -> tuple[Place, Client]:
    """A server that has the keys, and a client."""
    place = stack.enter_context(peer.serve())
    load(peer, place, keys)
    return place, stack.enter_context(connected(peer, place))


def hits(run: Run) -> None:
    """A key that this process has read before, 100 bytes."""
    stored = names("hit", run.scale.hit_keys)

    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        place = stack.enter_context(peer.serve())
        client = stack.enter_context(connected(peer, place))
        client.load({key: bytes(bytearray(VALUE)) for key in stored})
        # Keys that are equal to those stored, but not the same objects.
        shuffled = names("hit", run.scale.hit_keys)
        random.Random(1).shuffle(shuffled)
        asked = [client.key(name) for name in shuffled]
        client.timed(asked[:TRIAL])
        each = sum(client.timed(asked[:TRIAL])) / TRIAL
        asked = asked[: max(TRIAL, int(BLOCK_SECONDS / each))]
        client.timed(asked)
        return Contender(peer.name, lambda _: [client.mean_time(asked)])

    blocks = run.compete("hit", prepare, run.scale.rounds)
    for who, found in blocks.items():
        run.figure("hit", who, "s", flat(found))
    ours = blocks.get(OURS.name, [])
    for goal, reference in (("hit", "dict"), ("hit-redis", "redis-py, client-side cache")):
        if ours and (theirs := blocks.get(reference)):
            pairs = (ours, theirs) if goal == "hit" else (theirs, ours)
            run.goal(goal, paired(*pairs), ours, theirs)


def misses(run: Run) -> None:
    """A key that this process has never read, 100 bytes, bound by another client."""
    size = run.scale.block
    keys = names("miss", (run.scale.rounds + 1) * size)

    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        _, client = started(stack, peer, keys)
        asked = [client.key(name) for name in keys]
        client.timed(asked[:0])
        return Contender(
            peer.name, lambda number: client.timed(asked[number * size : (number + 1) * size])
        )

    blocks = run.compete("miss", prepare, run.scale.rounds)
    for who, found in blocks.items():
        run.figure("miss", who, "s", flat(found), tail=True)
    ours, theirs = blocks.get(OURS.name), blocks.get(ECHO.name)
    if ours and theirs:
        run.goal("miss", paired(ours, theirs), ours, theirs)


def batches(run: Run) -> None:
    """A hundred keys in one call, none of them read before: keys a second."""
    size = BATCH * run.scale.batches
    keys = names("many", (run.scale.rounds + 1) * size)

    def prepare(stack: ExitStack, peer: Peer) -> Contender:
        _, client = started(stack, peer, keys)
        asked = [client.key(name) for name in keys]

        def block(number: int) -> list[float]:
            rates = []
            for start in range(number * size, (number + 1) * size, BATCH):
                batch = asked[start : start + BATCH]
                began = time.perf_counter()
                client.get_many(batch)
                rates.append(BATCH / (time.perf_counter() - began))
            return rates

        return Contender(peer.name, block)

    blocks = run.compete("get_many", prepare, run.scale.rounds)
    for who, found in blocks.items():
        run.figure("get_many", who, RATE, flat(found))
    ours, theirs = blocks.get(OURS.name), blocks.get("redis-py")
    if ours and theirs:
        run.goal("get_many", paired(ours, theirs), ours, theirs, RATE)
