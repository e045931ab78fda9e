"""A program's first answer: from the creation of a client to its first value.

Each sample is of a new process, which has imported the library and made no client before.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.measure import Block, Contender, flat
from benchmarks.peers import BY_NAME, OURS, Peer, connected
from benchmarks.processes import Place, Worker
from benchmarks.run import Run
from benchmarks.workloads.host_reads import REDIS, elsewhere, hold_twice
from benchmarks.workloads.joins import join
from benchmarks.workloads.reads import load, names

HELD, ASKED = f"{OURS.name}, key in the host cache", f"{OURS.name}, Global asked"
SAMPLES = 2
"""New processes of each contender in a round."""


@contextmanager
def prepared(name: str, _: object = None) -> Iterator[None]:
    BY_NAME[name].preload()
    yield None


def first_answers(run: Run) -> None:
    """Measure a key that the host has, and keys that no process of the host has read."""
    keys = names("answer", (run.scale.answers + 1) * SAMPLES + 1)
    with ExitStack() as stack:
        contenders = []

        def prepare(stack: ExitStack, peer: Peer) -> Contender:
            place = stack.enter_context(peer.serve_on_host())
            load(peer, elsewhere(place), keys)
            if peer is OURS:
                other = stack.enter_context(Worker(connected, peer, place))
                other.call(hold_twice, keys[:1])
                contenders.append(Contender(HELD, _newcomers(peer, place, lambda: keys[0])))
            new = iter(keys[1:])
            name = ASKED if peer is OURS else peer.name
            return Contender(name, _newcomers(peer, place, lambda: next(new)))

        contenders += run.prepared("answer", stack, run.peers("answer"), prepare)
        blocks = run.turns("answer", contenders, run.scale.answers)
    for who, found in blocks.items():
        run.record("answer", who, "s", flat(found))
    run.compare("answer", blocks, REDIS, who=HELD)
    run.compare("answer-asked", blocks, REDIS, who=ASKED)


def _newcomers(peer: Peer, place: Place, key: Callable[[], str]) -> Callable[[int], Block]:
    def block(_: int) -> Block:
        return [_seconds(peer, place, key()) for _ in itertools.repeat(None, SAMPLES)]

    return block


def _seconds(peer: Peer, place: Place, key: str) -> float:
    with Worker(prepared, peer.name) as worker:
        worker.ready()
        return float(worker.call(join, time.monotonic_ns(), peer.name, place, key))
