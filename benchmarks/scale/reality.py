"""The CPU time of a real Global, on a small scale, against the derived time.

Global is a process. Its peers are in another one: bare sockets that send many GETs at a time, and
Nodes that acknowledge invalidations. Global's CPU time, of both threads, is compared with that of
the simulated cluster with as many Locals. The messages of real Nodes do not arrive all at once, so
that both threads of a real Global are woken more often when it has little to do.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import zmq

import dstore
from benchmarks.peers.ours import address as address_of
from benchmarks.peers.ours import serve
from benchmarks.processes import running_seconds
from benchmarks.scale.cluster import VALUE, Cluster, Prices, without_collector
from benchmarks.scale.experiments import Laboratory
from benchmarks.scale.socket_costs import TIMEOUT_MS
from dstore.protocol import wire
from dstore.protocol.messages import Get, Goodbye, Hello, Welcome


def real(count: int, times: int) -> dict[str, float]:
    """Return the CPU microseconds of Global for one miss, and for one DEL that all Nodes hold."""
    keys = [f"config/{number:06}" for number in range(times)]
    with ExitStack() as stack:
        place = stack.enter_context(serve())
        address = address_of(place)

        def taken() -> float:
            return running_seconds(place.pid)

        nodes = [stack.enter_context(dstore.Node(address)) for _ in range(count)]
        nodes[0].set_many(dict.fromkeys(keys, VALUE))
        dealers = [stack.enter_context(connected(address)) for _ in range(count)]
        began = taken()
        ask(dealers, keys)
        misses = (taken() - began) / count
        for node in nodes:
            node.get_many(keys)
        began = taken()
        for key in keys:
            if nodes[0].delete(key).confirmed != count:
                raise RuntimeError(f"{key!r} was not confirmed by all")
        deletions = taken() - began
    return {"miss_us": misses / times * 1e6, "del_us": deletions / times * 1e6}


@contextmanager
def connected(address: str) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.rcvtimeo = TIMEOUT_MS
        dealer.connect(address)
        yield dealer


def ask(dealers: Sequence[zmq.Socket[bytes]], keys: Sequence[str]) -> None:
    """Send GETs from all connections at a time: more than one Global can answer."""
    dealers[0].send(wire.encode(Hello(secrets.token_bytes(16), 0, 0, "asker")))
    welcome = wire.decode_to_local(dealers[0].recv())
    assert isinstance(welcome, Welcome)
    for number, key in enumerate(keys):
        frame = wire.encode(Get(welcome.epoch, welcome.session, number, [key]))
        for dealer in dealers:
            dealer.send(frame)
        for dealer in dealers:
            dealer.recv()
    dealers[0].send(wire.encode(Goodbye(welcome.epoch, welcome.secret)))
    dealers[0].recv()


def derived(count: int, prices: Prices) -> dict[str, float]:
    laboratory = Laboratory(Cluster(count), prices)
    times = 100
    miss = laboratory.misses(times)
    tries = [laboratory.deletion(count, alone=True) for _ in range(times)]
    return {
        "miss_us": (miss["busy_s"] + miss["io_s"]) / times * 1e6,
        "del_us": sum(each["busy_s"] + each["io_s"] for each in tries) / times * 1e6,
    }


def measure(prices: Prices, quick: bool) -> dict[str, Any]:
    count, times = (4, 50) if quick else (32, 500)
    return {
        "nodes": count,
        "real": real(count, times),
        "derived": without_collector(lambda: derived(count, prices)),
    }
