"""What Global does with one message, without sockets: decode, ``GlobalState.receive``, encode.

It is measured for each kind of message and for several numbers of open sessions, so that a cost
that grows with them shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from benchmarks.scale.cluster import LABEL, VALUE, Cluster, without_collector
from dstore.core.authority.effects import Publish, Send
from dstore.protocol import wire
from dstore.protocol.messages import (
    Ack,
    Del,
    Get,
    Goodbye,
    Hello,
    Message,
    Route,
    Scan,
    Set,
    SetItem,
    Stored,
    Sync,
    Wait,
)

Maker = Callable[[int], Message]


class Bench:
    """A Global with sessions, which receives one kind of message after the other."""

    def __init__(self, size: int, batch: int, repeats: int) -> None:
        self.cluster = Cluster(size)
        self.batch = batch
        self.repeats = repeats
        self._number = 0
        for index in range(1000):
            self.cluster.bind(f"config/{index:06}")

    def next(self) -> int:
        self._number += 1
        return self._number

    def time(
        self,
        make: Maker,
        prepare: Callable[[int], None] | None = None,
        route_of: Callable[[int], Route] | None = None,
    ) -> float:
        """Return the microseconds for one message: the median of some batches."""
        times = []
        for _ in range(self.repeats):
            frames = []
            for index in range(self.batch):
                number = self.next()
                if prepare is not None:
                    prepare(number)
                workers = self.cluster.workers
                route = route_of(number) if route_of else workers[index % len(workers)].channel
                frames.append((route, wire.encode(make(number))))
            times.append(self._batch(frames))
        return median(times) * 1e6

    def _batch(self, frames: Sequence[tuple[Route, bytes]]) -> float:
        state, now = self.cluster.state, self.cluster.now
        decode, encode = wire.decode_to_global, wire.encode
        began = time.thread_time()
        for route, frame in frames:
            for effect in state.receive(route, decode(frame), now):
                if isinstance(effect, (Send, Publish)):
                    encode(effect.message)
        return (time.thread_time() - began) / len(frames)

    def kinds(self) -> dict[str, float]:
        """Microseconds by kind of message."""
        cluster = self.cluster
        epoch, bind, size = cluster.state.epoch, cluster.bind, len(cluster.workers)

        def who(number: int) -> int:
            return cluster.workers[number % size].state.session

        def secret(number: int) -> int:
            return cluster.workers[number % size].state._secret

        def key(number: int) -> str:
            return f"config/{number % 1000:06}"

        def item(number: int) -> SetItem:
            return SetItem(f"new/{number:08}", Stored(number.to_bytes(16, "big"), "bytes", VALUE))

        def doomed(number: int) -> str:
            return f"doomed/{number:08}"

        def asked(number: int) -> tuple[int, int, int]:
            return epoch, who(number), number

        def written(number: int) -> tuple[int, int, int, int, int]:
            return (*asked(number), number, number)  # the writes before are seen

        found = {
            "SYNC": self.time(lambda n: Sync(epoch, secret(n), n, 0, 1)),
            "ACK": self.time(lambda n: Ack(epoch, secret(n), 0)),
            "GET, 100 B": self.time(lambda n: Get(*asked(n), [key(n)])),
            "GET, missing": self.time(lambda n: Get(*asked(n), ["none"])),
            "GET of 100 keys": self.time(
                lambda n: Get(*asked(n), [key(n + i) for i in range(100)])
            ),
            "WAIT, bound": self.time(lambda n: Wait(*asked(n), key(n), 5.0)),
            "SCAN of 100 keys": self.time(lambda n: Scan(*asked(n), "config/", "", 100)),
            "SET, 100 B": self.time(lambda n: Set(*written(n), False, [item(n)], who(n))),
            "DEL, no holder": self.time(
                lambda n: Del(*written(n), True, [doomed(n)]), lambda n: bind(doomed(n))
            ),
        }
        nonces: list[int] = []

        def hello(number: int) -> Hello:
            nonces.append(number)
            return Hello(number.to_bytes(16, "little"), 0, 0, LABEL)

        def newcomer(number: int) -> Route:
            return number.to_bytes(5, "big")  # each on a connection of its own

        found["HELLO"] = self.time(hello, route_of=newcomer)
        state = cluster.state
        joined = iter([state._sessions.by_nonce(n.to_bytes(16, "little")) for n in nonces])
        sessions = iter([each.secret for each in joined if each is not None])
        found["GOODBYE"] = self.time(lambda _: Goodbye(epoch, next(sessions)))
        return found


def measure(sizes: Sequence[int], quick: bool) -> dict[str, Any]:
    batch, repeats = (50, 3) if quick else (500, 7)

    def kinds(size: int) -> dict[str, float]:
        return Bench(size, batch, repeats).kinds()

    return {
        "us_by_sessions": {str(size): without_collector(partial(kinds, size)) for size in sizes},
    }
