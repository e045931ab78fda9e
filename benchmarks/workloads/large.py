"""One large value: first read on a host, again, by a second process of that host.

A host is a folder in shared memory here, so that a Node on host ``two`` reaches the Global of
host ``one`` over a socket, as on a machine of its own. All values are plain bytes with the same
content. What a reader gets in shared memory (dstore, Ray) is mapped; its pages are entered when
they are used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import zmq

from benchmarks.measure import Block, Contender
from benchmarks.peers import BY_NAME, Client, connected
from benchmarks.peers.echo import answering
from benchmarks.peers.ours import OurClient, serve
from benchmarks.peers.over_ray import RayClient
from benchmarks.processes import CALL_TIMEOUT, Place, Worker, hosts, server
from benchmarks.run import Run
from benchmarks.settings import MIB

FRAME = "one bare frame"
AWAY, HERE = "dstore, another host", "dstore, Global's host"
OVER_REDIS = ("redis-py", "ProxyStore over Redis")
RAY = "Ray's object store"
Steps = dict[str, list[float]]
"""Seconds of each step: set, first, again, second process."""


def content(size: int) -> bytes:
    return (os.urandom(MIB) * (size // MIB + 1))[:size]


def seconds_of_get(client: Client, name: str) -> float:
    began = time.perf_counter()
    value = client.get(client.key(name))
    taken = time.perf_counter() - began
    del value
    return taken


def seconds_of_set(client: Client, name: str, size: int) -> float:
    items = {name: content(size)}
    began = time.perf_counter()
    client.load(items)
    return time.perf_counter() - began


def delete(client: Client, name: str) -> None:
    client.delete(client.key(name))


@contextmanager
def our_client(place: Place, shm: str, *_: object) -> Iterator[OurClient]:
    client = OurClient(place, shm)
    try:
        client.node.join()
        yield client
    finally:
        client.close()


# One bare frame ----------------------------------------------------------------------------------


@contextmanager
def _serve_frame(size: int) -> Iterator[Place]:
    with answering(content(size), copy=False) as place:
        yield place


@contextmanager
def frames(size: int) -> Iterator[Callable[[], float]]:
    """Yield a function that receives one frame without a copy, and returns the seconds."""
    with (
        server(_serve_frame, size) as place,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as dealer,
    ):
        dealer.linger = 0
        dealer.rcvtimeo = int(CALL_TIMEOUT * 1000)
        dealer.connect(f"tcp://{place.host}:{place.port}")

        def seconds() -> float:
            began = time.perf_counter()
            dealer.send(b"x")
            frame = dealer.recv(copy=False)
            taken = time.perf_counter() - began
            if len(frame.buffer) != size:
                raise RuntimeError("a frame of another size came")
            return taken

        yield seconds


# Contenders: each keeps the times of its steps --------------------------------------------------


def _ours(stack: ExitStack, size: int, steps: dict[str, Steps]) -> Contender:
    host = stack.enter_context(hosts())
    place = stack.enter_context(serve(host("one")))
    writer, near, first, second = (
        stack.enter_context(Worker(our_client, place, host(name))).ready()
        for name in ("one", "one", "two", "two")
    )

    def block(number: int) -> Block:
        key = f"large/{number}"
        here = {
            "set": writer.call(seconds_of_set, key, size),
            "first": near.call(seconds_of_get, key),
            "again": near.call(seconds_of_get, key),
        }
        away = {
            "first": first.call(seconds_of_get, key),
            "again": first.call(seconds_of_get, key),
            "second process": second.call(seconds_of_get, key),
        }
        writer.call(delete, key)
        _keep(steps[HERE], number, here)
        _keep(steps[AWAY], number, away)
        return [away["first"]]

    return Contender(AWAY, block)


def _theirs(name: str, stack: ExitStack, size: int, steps: dict[str, Steps]) -> Contender:
    peer = BY_NAME[name]
    place = stack.enter_context(peer.serve())
    writer, first, second = (
        stack.enter_context(Worker(connected, peer, place)).ready() for _ in range(3)
    )

    def block(number: int) -> Block:
        key = f"large/{number}"
        found = {
            "set": writer.call(seconds_of_set, key, size),
            "first": first.call(seconds_of_get, key),
            "again": first.call(seconds_of_get, key),
            "second process": second.call(seconds_of_get, key),
        }
        writer.call(delete, key)
        _keep(steps[name], number, found)
        return [found["first"]]

    return Contender(name, block)


def _frame(stack: ExitStack, size: int, steps: dict[str, Steps]) -> Contender:
    seconds = stack.enter_context(frames(size))

    def block(number: int) -> Block:
        found = seconds()
        _keep(steps[FRAME], number, {"first": found})
        return [found]

    return Contender(FRAME, block)


def _ray(stack: ExitStack, size: int, steps: dict[str, Steps]) -> Contender:
    peer = BY_NAME[RAY]
    client = stack.enter_context(connected(peer, stack.enter_context(peer.serve())))
    assert isinstance(client, RayClient)

    def block(number: int) -> Block:
        key = f"large/{number}"
        found = {
            "set": seconds_of_set(client, key, size),
            "first": seconds_of_get(client, key),
            "again": seconds_of_get(client, key),
            "second process": client.seconds_elsewhere(key),
        }
        client.forget(key)
        _keep(steps[RAY], number, found)
        return [found["first"]]

    return Contender(RAY, block)


def _keep(steps: Steps, number: int, found: dict[str, Any]) -> None:
    if number:
        for step, seconds in found.items():
            steps.setdefault(step, []).append(seconds)


def large(run: Run) -> None:
    """Measure 64 MiB: set, first read, read again, read by a second process."""
    size = run.scale.large
    steps: dict[str, Steps] = {each: {} for each in (FRAME, AWAY, HERE, *OVER_REDIS, RAY)}
    makers = {FRAME: _frame, AWAY: _ours}
    for name in OVER_REDIS:
        if run.allows("large", BY_NAME[name]):
            makers[name] = partial(_theirs, name)
    blocks: dict[str, list[Block]] = {}
    with ExitStack() as stack:
        contenders = [maker(stack, size, steps) for maker in makers.values()]
        blocks = run.turns("large", contenders, run.scale.large_rounds)
    if run.allows("large", BY_NAME[RAY]):  # alone, since it disturbs others
        with ExitStack() as stack:
            rays = run.prepared(
                "large", stack, [BY_NAME[RAY]], lambda stack, _: _ray(stack, size, steps)
            )
            run.turns("large", rays, run.scale.large_rounds)
    for who, found in steps.items():
        for step, times in found.items():
            run.record("large", who, "s", times, {"bytes": size, "step": step})
    run.compare("large", blocks, FRAME, who=AWAY)
    if AWAY in blocks:
        second = steps[AWAY]["second process"]
        run.goal("large-second", second, [second])
