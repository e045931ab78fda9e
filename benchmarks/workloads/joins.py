"""From nothing to the first answer: one newcomer, and many at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.measure import Block, Contender, flat
from benchmarks.peers import BY_NAME, Peer
from benchmarks.processes import Crew, Place, wait_until
from benchmarks.run import Run
from benchmarks.workloads.reads import load, names

CROWD_ROUNDS = 5


@contextmanager
def idle(_: int) -> Iterator[None]:
    yield None


def join(_: None, start_ns: int, name: str, place: Place, key: str) -> float:
    """Return the seconds until a new client has its first answer."""
    peer = BY_NAME[name]
    wait_until(start_ns)
    began = time.perf_counter()
    client = peer.client(place)
    try:
        client.get(client.key(key))
        return time.perf_counter() - began
    finally:
        client.close()


def joins(run: Run) -> None:
    """Measure newcomers: processes that have the library loaded, and nothing else of the peer."""
    key = names("join", 1)[0]
    with ExitStack() as stack:
        places: dict[str, Place] = {}

        def prepare(stack: ExitStack, peer: Peer) -> Contender:
            places[peer.name] = stack.enter_context(peer.serve_on_host())
            load(peer, places[peer.name], [key])
            return Contender(peer.name, lambda _: [])

        run.prepared("join", stack, run.peers("join"), prepare)
        crew = stack.enter_context(Crew())
        for count in run.scale.crowds:
            crew.grow(count, idle)
            rounds = run.scale.joins if count == 1 else min(run.scale.joins, CROWD_ROUNDS)
            contenders = [
                Contender(name, partial(_crowd, crew, count, name, place, key))
                for name, place in places.items()
            ]
            blocks = run.turns("join", contenders, rounds)
            for who, found in blocks.items():
                run.record("join", who, "s", flat(found), {"newcomers": count})


def _crowd(crew: Crew, count: int, name: str, place: Place, key: str, _: int) -> Block:
    """Return the seconds until the last one has its answer."""
    return [max(crew.together(count, join, name, place, key))]
