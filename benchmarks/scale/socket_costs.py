"""What the sockets of Global cost: its real Router, on loopback, with peers in another process.

All times are CPU time: that of the thread in which Global works, and that of the rest of the
process, which is ZeroMQ's I/O thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any, NamedTuple

import zmq

from benchmarks.processes import Worker
from benchmarks.scale.cluster import Prices
from dstore.transport.router import Router

SMALL, BIG = 40, 30_000
"""Bytes of a frame: as long as most, and as a broadcast that names 10,000 holders."""
TIMEOUT_MS = 30_000
PING_MS = 10
PAUSE = 0.001
"""Seconds between two rounds. With many Locals a connection rarely has two messages under way, so
each is read from its socket, and written to it, by itself.
"""


class Spent(NamedTuple):
    """CPU time in seconds for one message."""

    own: float
    io: float


class Line(NamedTuple):
    """The straight line that fits best: ``fixed + each * n``."""

    fixed: float
    each: float


def fitted(points: Sequence[tuple[float, float]]) -> Line:
    """Fit a line by least squares."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    each = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return Line(mean_y - each * mean_x, each)


# ---- the other process ------------------------------------------------------------------------


class Sockets(NamedTuple):
    """The sockets of some Locals: a DEALER and a SUB each."""

    dealers: list[zmq.Socket[bytes]]
    subs: list[zmq.Socket[bytes]]


@contextmanager
def sockets_of(address: str, publisher: str, count: int, ping_ms: int) -> Iterator[Sockets]:
    """The sockets of ``count`` Locals. With ``ping_ms`` each connection is pinged that often."""
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        sockets = Sockets([], [])
        for _ in range(count):
            dealer = stack.enter_context(context.socket(zmq.DEALER))
            sub = stack.enter_context(context.socket(zmq.SUB))
            for sock, where in ((dealer, address), (sub, publisher)):
                sock.setsockopt(zmq.LINGER, 0)
                sock.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
                sock.setsockopt(zmq.HEARTBEAT_IVL, ping_ms)
                sock.connect(where)
            sub.setsockopt(zmq.SUBSCRIBE, b"")
            sockets.dealers.append(dealer)
            sockets.subs.append(sub)
        yield sockets


def send_all(sockets: Sockets, times: int) -> None:
    """Send a message from each DEALER, this many times with a pause after each round."""
    for _ in range(times):
        for dealer in sockets.dealers:
            dealer.send(bytes(SMALL))
        time.sleep(PAUSE)


def read_all(sockets: Sockets, times: int) -> None:
    """Receive this many messages with each DEALER."""
    for _ in range(times):
        for dealer in sockets.dealers:
            dealer.recv()


def hear_all(sockets: Sockets, times: int) -> None:
    """Receive this many messages with each SUB."""
    for _ in range(times):
        for sub in sockets.subs:
            sub.recv()


@contextmanager
def with_peers(count: int, ping_ms: int = 0) -> Iterator[tuple[Router, Worker]]:
    """A Router, and the process with its peers. One message of each peer has arrived."""
    router = Router("tcp://127.0.0.1:0", None)
    try:
        with Worker(sockets_of, router.address, router.publisher, count, ping_ms) as peer:
            peer.begin(send_all, 1)
            all_of(router, count)
            peer.result()
            yield router, peer
    finally:
        router.close()


# ---- measuring --------------------------------------------------------------------------------


def spent(work: Callable[[], object], times: int) -> Spent:
    process, thread = time.process_time(), time.thread_time()
    work()
    own = time.thread_time() - thread
    return Spent(own / times, max(0.0, time.process_time() - process - own) / times)


def all_of(router: Router, count: int) -> list[bytes]:
    """Receive this number of frames. Returns the routes that they came from."""
    routes: list[bytes] = []
    timeout = TIMEOUT_MS / 1000
    end = time.monotonic() + timeout
    while len(routes) < count:
        arrived = router.receive(timeout)
        if arrived is not None:
            routes.append(arrived[0])
        elif time.monotonic() > end:
            raise TimeoutError(f"only {len(routes)} of {count} messages have arrived")
    return routes


def requests(count: int, times: int) -> dict[str, Spent]:
    """Measure one message received, and one sent.

    The I/O thread has at most one message of each connection at a time.
    """
    total = count * times
    with with_peers(count) as (router, peer):

        def arrive() -> None:
            peer.call(send_all, times)
            time.sleep(20 * PAUSE)  # now all of them are in Global's queue

        io_receive = spent(arrive, total).io
        routes: set[bytes] = set()
        receive = spent(lambda: routes.update(all_of(router, total)), total).own
        sending = []

        def reply() -> None:
            peer.begin(read_all, times)
            for _ in range(times):
                began = time.thread_time()
                for route in routes:
                    router.send(route, bytes(SMALL))
                sending.append((time.thread_time() - began) / count)
                time.sleep(PAUSE)
            peer.result()

        io_send = spent(reply, total).io
        send = median(sending)
    return {
        "receive": Spent(receive, io_receive),
        "send": Spent(send, io_send),
    }


def broadcasts(count: int, times: int, size: int, pause: float = PAUSE) -> Spent:
    """Measure one broadcast to this number of subscribers."""
    with with_peers(count) as (router, peer):
        time.sleep(0.3)  # subscriptions have no answer
        frame, own = bytes(size), []

        def publish() -> None:
            peer.begin(hear_all, times)
            for _ in range(times):
                began = time.thread_time()
                router.publish(frame)
                own.append(time.thread_time() - began)
                if pause:
                    time.sleep(pause)
            peer.result()

        io = spent(publish, times).io
    return Spent(median(own), io)


def pings(count: int, seconds: float) -> Spent:
    """Measure one ping of a connection and its answer, while nothing else happens."""
    with with_peers(count, PING_MS):
        times = int(2 * count * seconds / (PING_MS / 1000))  # DEALERs and SUBs
        return spent(lambda: time.sleep(seconds), times)


def measure(quick: bool) -> dict[str, Any]:
    """Measure everything, in microseconds, and fit the prices."""
    counts = (1, 4, 16) if quick else (1, 2, 4, 8, 16, 32, 64)
    times = 20 if quick else 200
    asked = requests(counts[-1], times)
    small = {count: broadcasts(count, times, SMALL) for count in counts}
    big = broadcasts(counts[-1], times, BIG)
    burst = broadcasts(counts[-1], times, SMALL, pause=0.0)
    own = fitted([(count, each.own) for count, each in small.items()])
    io = fitted([(count, each.io) for count, each in small.items()])
    byte = max(0.0, big.io - small[counts[-1]].io) / counts[-1] / (BIG - SMALL)
    prices = Prices(
        receive=asked["receive"].own,
        send=asked["send"].own,
        publish=max(0.0, own.fixed),
        publish_each=max(0.0, own.each),
        io_receive=asked["receive"].io,
        io_send=asked["send"].io,
        io_publish_each=max(0.0, io.each),
        io_byte=byte,
    )
    return {
        "prices": prices,
        "publications": [
            {"subscribers": count, "own_us": each.own * 1e6, "io_us": each.io * 1e6}
            for count, each in small.items()
        ],
        "ping_io_us": pings(counts[-1], 0.2 if quick else 2.0).io * 1e6,
        "burst": {"subscribers": counts[-1], "io_us": burst.io * 1e6},
        "big_publication": {"subscribers": counts[-1], "bytes": BIG, "io_us": big.io * 1e6},
    }
