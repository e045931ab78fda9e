"""Small requests while a large value moves, against the same requests without it.

A Node without a cache reads one small key again and again, each time from Global. Meanwhile a
Node on another host fetches a large value, or uploads one.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

import dstore
from benchmarks.measure import Block, Contender, flat, p99, paired
from benchmarks.peers.ours import OurClient, address, serve
from benchmarks.processes import SHARED, Worker, hosts
from benchmarks.run import Run
from benchmarks.settings import VALUE
from benchmarks.workloads.large import delete, our_client

ALONE, DOWN, UP = "nothing moves", "download", "upload"
ROOM = 3
"""How many times the value must fit into shared memory."""
KEY = "small"


def set_zeros(client: OurClient, name: str, size: int) -> None:
    client.node.set(name, bytes(size))


def get(client: OurClient, name: str) -> None:
    client.node.get(name)


def moving(run: Run) -> None:
    """Measure the 99th percentile of a small GET that Global answers."""
    size = run.scale.moving
    if why := _too_small(size):
        run.skip("moving", "dstore", why)
        return
    with ExitStack() as stack:
        host = stack.enter_context(hosts())
        place = stack.enter_context(serve(host("one")))
        near = stack.enter_context(Worker(our_client, place, host("one"))).ready()
        far = stack.enter_context(Worker(our_client, place, host("two"))).ready()
        node = stack.enter_context(dstore.Node(address(place), shm="", cache_bytes=0))
        node.set(KEY, VALUE)

        def timed_while(worker: Worker | None) -> Block:
            times: Block = []
            clock = time.perf_counter
            while worker.busy() if worker else len(times) < run.scale.least_requests:
                start = clock()
                node.get(KEY)
                times.append(clock() - start)
            if worker:
                worker.result()
            return times

        def download(number: int) -> Block:
            near.call(set_zeros, f"down/{number}", size)
            far.begin(get, f"down/{number}")
            times = timed_while(far)
            near.call(delete, f"down/{number}")
            return times

        def upload(number: int) -> Block:
            far.begin(set_zeros, f"up/{number}", size)
            times = timed_while(far)
            far.call(delete, f"up/{number}")
            return times

        contenders = [
            Contender(ALONE, lambda _: timed_while(None)),
            Contender(DOWN, download),
            Contender(UP, upload),
        ]
        blocks = run.turns("moving", contenders, run.scale.moving_rounds)
    for who, found in blocks.items():
        run.record("moving", who, "s", flat(found), {"bytes": size}, tail=True)
    alone = blocks.get(ALONE)
    if alone and DOWN in blocks and UP in blocks:
        # The worse of the two directions, round by round.
        both = zip(*(paired(blocks[way], alone, p99) for way in (DOWN, UP)))
        tails = [[max(p99(down), p99(up))] for down, up in zip(blocks[DOWN], blocks[UP])]
        run.goal("moving", [max(pair) for pair in both], tails, [[p99(each)] for each in alone])


def _too_small(size: int) -> str:
    if not SHARED.is_dir():
        return f"there is no {SHARED}"
    room = os.statvfs(SHARED)
    free = room.f_bavail * room.f_frsize
    return "" if free > ROOM * size else f"{SHARED} has room for {free >> 20} MiB only"
