"""The same on a small scale with real processes: is the CPU time of a real Global what is derived?

Global is a process, those that ask are in another one: bare sockets that send many GETs at a time,
and Nodes that acknowledge deletions. Global's CPU time, of both threads, is compared with what the
simulated cluster of as many Locals comes to. What real Nodes say does not arrive all at once, so
that both threads of a real Global, when it has little to do, are woken more often.
"""

from __future__ import annotations

import multiprocessing
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import zmq

import dstore
from benchmarks.scale.cluster import VALUE, Prices, without_collector
from benchmarks.scale.experiments import Laboratory
from benchmarks.scale.socket_costs import PATIENCE_MS
from dstore.protocol import wire
from dstore.protocol.messages import Get, Goodbye, Hello, Welcome


def global_process(commands: Connection) -> None:
    """Says how much CPU time it has taken, whenever it is asked."""
    with dstore.Global("tcp://127.0.0.1:0") as running:
        commands.send(running.address)
        while commands.recv():
            commands.send(time.process_time())


@contextmanager
def a_global() -> Iterator[tuple[str, Callable[[], float]]]:
    """Its address, and a function that asks for its CPU time."""
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    child = spawn.Process(target=global_process, args=(far,))
    child.start()
    far.close()

    def taken() -> float:
        near.send(True)
        seconds: float = near.recv()
        return seconds

    try:
        yield near.recv(), taken
    finally:
        near.send(False)
        child.join()
        near.close()


def real(count: int, times: int) -> dict[str, float]:
    """CPU microseconds of Global for one miss, and for one DEL that so many Nodes hold."""
    keys = [f"config/{number:06}" for number in range(times)]
    with ExitStack() as stack:
        address, taken = stack.enter_context(a_global())
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
        dealer.rcvtimeo = PATIENCE_MS
        dealer.connect(address)
        yield dealer


def ask(dealers: Sequence[zmq.Socket[bytes]], keys: Sequence[str]) -> None:
    """GETs from so many connections at a time: more than one Global can answer."""
    dealers[0].send(wire.encode(Hello(secrets.token_bytes(16), 0, 0, "asker")))
    welcome = wire.decode_to_local(dealers[0].recv())
    assert isinstance(welcome, Welcome)
    for number, key in enumerate(keys):
        frame = wire.encode(Get(welcome.epoch, welcome.session, number, [key]))
        for dealer in dealers:
            dealer.send(frame)
        for dealer in dealers:
            dealer.recv()
    dealers[0].send(wire.encode(Goodbye(welcome.epoch, welcome.session)))
    dealers[0].recv()


def derived(count: int, prices: Prices) -> dict[str, float]:
    laboratory = Laboratory(count, prices)
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
