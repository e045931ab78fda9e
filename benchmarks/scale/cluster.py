"""Many Locals and one Global, with their real cores, in virtual time.

Global works as :class:`dstore.Global` does: it takes a message, then does what is due. Virtual time
advances by the CPU time that this work really took in this thread, and by the price of the sockets
around it. Without prices the work takes no time, so that the counts depend on the protocol alone
and are the same in every run.

Locals are on machines of their own: their work takes no time, and their messages arrive one
``LATENCY`` later. Global's I/O thread is one queue: each message on its way in or out, and each
copy of a broadcast, takes its price there.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from dstore.config import CLIENTS_MAX, LARGE_FROM_DEFAULT, LEASE_DEFAULT, LOG_LENGTH_DEFAULT
from dstore.core.authority.effects import Commit, GlobalEffect, Publish, Send
from dstore.core.authority.partitions import Partitions
from dstore.core.authority.state import GlobalState
from dstore.core.local.effects import LocalEffect, Tell
from dstore.core.local.membership import Membership
from dstore.core.local.state import RENEW, LocalState
from dstore.protocol import wire
from dstore.protocol.messages import (
    Del,
    DelReply,
    Get,
    GetReply,
    Message,
    Route,
    Set,
    SetItem,
    SetReply,
    Stored,
    ToGlobal,
)
from dstore.server.engines.memory import MemoryEngine
from dstore.shm.bulk import PrivateBulk

LATENCY = 50e-6
"""Seconds for which a message is on its way."""
CACHE_BYTES = 1 << 20
EPOCH = 0x1234_5678_9ABC_DEF0
"""As long on the wire as a real one."""
LABEL = "worker on some-host, process 12345"
VALUE = bytes(range(100))
PROGRESS_MAX = 120.0
"""Seconds of virtual time after which an experiment is given up."""


class Prices(NamedTuple):
    """What the sockets cost, in seconds: ``io_`` in the I/O thread, the rest in Global's thread."""

    receive: float = 0.0
    send: float = 0.0
    publish: float = 0.0
    publish_each: float = 0.0  # subscriber
    io_receive: float = 0.0
    io_send: float = 0.0
    io_publish_each: float = 0.0
    io_byte: float = 0.0


def framed(frame: bytes) -> int:
    """Return the bytes on the wire, with the header that ZeroMQ puts before a frame."""
    return len(frame) + (2 if len(frame) < 256 else 9)


class Traffic:
    """Messages and bytes by kind; a broadcast counts once for each subscriber."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.core = 0.0  # seconds of Global's thread in the core and the wire
        self.sockets = 0.0  # the same, for sockets
        self.io = 0.0  # seconds of the I/O thread

    def note(self, message: Message, size: int) -> None:
        kind = type(message).__name__
        self.messages[kind] += 1
        self.bytes[kind] += size

    def totals(self) -> dict[str, Any]:
        return {
            "messages": dict(self.messages),
            "bytes": dict(self.bytes),
            "core_s": self.core,
            "sockets_s": self.sockets,
            "busy_s": self.core + self.sockets,
            "io_s": self.io,
        }


class SimulatedLocal:
    """One Local. Its control channel and its requests have a route each."""

    def __init__(self, cluster: Cluster, index: int) -> None:
        self.cluster = cluster
        self.index = index
        self.state = LocalState(random16=cluster.random16, label=LABEL, cache_bytes=CACHE_BYTES)
        self.control: Route = b"c" + index.to_bytes(4, "big")
        self.channel: Route = b"r" + index.to_bytes(4, "big")
        self.timer = float("inf")
        self.asked: dict[int, tuple[Membership, list[str], float]] = {}
        self.waited: list[float] = []  # seconds, for each reply to a GET
        self.written: list[SetReply] = []
        self.deleted: list[DelReply] = []

    def turn(self, now: float) -> None:
        """Do what is due, as the background thread of a Local does."""
        self._perform(self.state.tick(now), now)
        due = self.state.wake_at
        if due < self.timer:
            self.timer = due
            self.cluster.set_timer(due, self)

    def hear(self, message: Any, now: float) -> None:
        """Receive a message on the control channel, or a broadcast."""
        self._perform(self.state.receive(message, now), now)
        self.turn(now)

    def answered(self, message: Any, now: float) -> None:
        """Receive the reply to a request."""
        if isinstance(message, (SetReply, DelReply)):
            if isinstance(message, SetReply):
                self.written.append(message)
            else:
                self.deleted.append(message)
            self.state.writer.writing.discard(message.request)
        elif isinstance(message, GetReply):
            membership, keys, began = self.asked.pop(message.request)
            self.waited.append(now - began)
            self.state.fill_many(membership, keys, message, {})
            self.state.end_asking(keys, message.request)

    def get(self, keys: list[str], now: float) -> None:
        state, request = self.state, self.state.next_request()
        state.begin_asking(keys, request)
        self.asked[request] = state.membership, keys, now
        self.cluster.send(self.channel, Get(state.epoch, state.session, request, keys), now)

    def set(self, key: str, now: float) -> None:
        item = SetItem(key, Stored(self.cluster.random16(), "bytes", VALUE))
        asked = Set(*self._write(), False, [item], self.state.session)
        self.cluster.send(self.channel, asked, now)

    def delete(self, keys: list[str], now: float) -> None:
        self.cluster.send(self.channel, Del(*self._write(), True, keys), now)

    def _write(self) -> tuple[int, int, int, int, int]:
        """Begin a write. Returns what a SET and a DEL begin with."""
        state, write = self.state, self.state.writer.next
        state.writer.begin(write)
        return state.epoch, state.session, write, write, state.writer.seen

    def _perform(self, effects: Iterable[LocalEffect], now: float) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self.cluster.send(self.control, effect.message, now)


class Cluster:
    """A Global with ``size`` Locals, joined at equal distances over one period of renewal.

    With ``at_once`` they all join, and later renew, at the same moments. ``prices`` may be set at
    any time; with None Global takes no time. While ``renewing`` is off, no timer of a Local fires.
    A Global with ``partitions`` is a member of several, see :class:`~.member.Member`.
    """

    def __init__(
        self,
        size: int,
        lease: float = LEASE_DEFAULT,
        *,
        at_once: bool = False,
        partitions: Partitions | None = None,
    ) -> None:
        self.now = 1000.0
        self.lease = lease
        self.prices: Prices | None = None
        self.renewing = True
        self.traffic = Traffic()
        self._draws = itertools.count(1)
        self._serial = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._timers: list[tuple[float, int, SimulatedLocal]] = []
        self._inbox: deque[Callable[[], None]] = deque()  # what Global's thread has to take
        self._io_free = 0.0
        self.engine = MemoryEngine()
        self.state = GlobalState(
            self.engine,
            PrivateBulk(),
            epoch=EPOCH,
            publisher="tcp://*:50052",
            lease=lease,
            log_length=LOG_LENGTH_DEFAULT,
            value_limit=1 << 30,
            large_from=LARGE_FROM_DEFAULT,
            random63=partial(secrets.randbits, 63),
            wall=time.time,
            max_clients=CLIENTS_MAX,
            durable=partitions is not None,
            partitions=partitions,
        )
        self.workers = [SimulatedLocal(self, index) for index in range(size)]
        self._by_route = {each.control: each.hear for each in self.workers}
        self._by_route |= {each.channel: each.answered for each in self.workers}
        self._join(0.0 if at_once else self.period)

    def _join(self, span: float) -> None:
        """Let all join. If they do so at once, it ends in the middle between two renewals."""
        start = self.now
        for worker in self.workers:
            self.at(start + span * worker.index / len(self.workers), worker.turn)
        self.run(span + self.period / 2)

    def renew_all(self) -> None:
        """Let all renew now, at no price, so that none has to do so for one period."""
        self.prices = None
        for worker in self.workers:
            worker.state.renew(self.now)
            worker.turn(self.now)
        self.run(4 * LATENCY)

    @property
    def period(self) -> float:
        """The time between two renewals of one Local."""
        return RENEW * self.lease

    def random16(self) -> bytes:
        return next(self._draws).to_bytes(16, "big")

    def bind(self, key: str) -> None:
        """Give a key a value that no Local holds."""
        self.engine.bind(key, Stored(self.random16(), "bytes", VALUE))

    # ---- time -----------------------------------------------------------------------------

    def at(self, due: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (due, next(self._serial), action))

    def set_timer(self, due: float, worker: SimulatedLocal) -> None:
        heapq.heappush(self._timers, (max(due, self.now), next(self._serial), worker))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        self.run_until(lambda: self.now >= end, end)

    def run_until(self, done: Callable[[], bool], end: float | None = None) -> None:
        """Go on until ``done``. While Global is idle, time does not pass ``end``."""
        limit = self.now + PROGRESS_MAX if end is None else end
        while True:
            self._happen()
            if done():
                return
            if self._inbox or self.now >= self.state.wake_at:
                self._turn()
            elif self.now >= limit:
                if end is None:
                    raise RuntimeError("the experiment does not end")
                return
            else:
                self.now = min(max(self.now, self._next()), limit)

    def _next(self) -> float:
        timers = self._timers[:1] if self.renewing else []
        return min(self.state.wake_at, *(each[0] for each in (*self._events[:1], *timers)), 1e9)

    def _happen(self) -> None:
        """Do what the Locals have done by now, while Global was at work."""
        while True:
            timers = self._timers if self.renewing else []
            event = self._events[0][0] if self._events else 1e9
            timer = timers[0][0] if timers else 1e9
            if min(event, timer) > self.now:
                return
            if event <= timer:
                due, _, action = heapq.heappop(self._events)
                action(due)
            else:
                due, _, worker = heapq.heappop(self._timers)
                if worker.timer <= due:
                    worker.timer = float("inf")
                    worker.turn(due)

    # ---- Global at work -------------------------------------------------------------------

    def send(self, route: Route, message: ToGlobal, now: float) -> None:
        frame = wire.encode(message)
        self.traffic.note(message, framed(frame))
        self.at(now + LATENCY, partial(self._arrive, route, frame))

    def _arrive(self, route: Route, frame: bytes, now: float) -> None:
        if self.prices is None:
            self._inbox.append(partial(self._receive, route, frame))
            return
        ready = self._io(now, self.prices.io_receive)
        self.at(ready, lambda now: self._inbox.append(partial(self._receive, route, frame)))

    def _io(self, now: float, price: float) -> float:
        """Charge the I/O thread. Returns when it will have done this."""
        self.traffic.io += price
        self._io_free = max(self._io_free, now) + price
        return self._io_free

    def _turn(self) -> None:
        """Take one turn, as Global's loop does."""
        if self._inbox:
            self._inbox.popleft()()
        if self.now >= self.state.wake_at:
            self._step(lambda: self.state.tick(self.now))

    def _receive(self, route: Route, frame: bytes) -> None:
        if self.prices is not None:
            self._pay(self.prices.receive)
        self._step(partial(self._take, route, frame))

    def _take(self, route: Route, frame: bytes) -> list[GlobalEffect]:
        return self.state.receive(route, wire.decode_to_global(frame), self.now)

    def _step(self, step: Callable[[], list[GlobalEffect]]) -> None:
        """Handle one event at Global, then its effects in their order."""
        began = time.thread_time()
        found = step()
        sent = [each for each in found if isinstance(each, (Send, Publish))]
        effects = [(each, wire.encode(each.message)) for each in sent]
        took = max(0.0, time.thread_time() - began - CLOCK_COST)
        if self.prices is not None:
            self.traffic.core += took
            self.now += took
        for effect, frame in effects:
            self._perform(effect, frame)
        self._commit([each for each in found if isinstance(each, Commit)])

    def _commit(self, batches: Sequence[Commit]) -> None:
        """Make batches of changes durable. A Global in memory has none."""

    def _pay(self, price: float) -> None:
        self.traffic.sockets += price
        self.now += price

    def _perform(self, effect: Send | Publish, frame: bytes) -> None:
        prices = self.prices or Prices()
        size = framed(frame)
        if isinstance(effect, Publish):
            self._pay(prices.publish + prices.publish_each * len(self.workers))
            copy = prices.io_publish_each + prices.io_byte * size
            for worker in self.workers:
                self.traffic.note(effect.message, size)
                left = self._io(self.now, copy)
                self.at(left + LATENCY, partial(worker.hear, effect.message))
        else:
            self._pay(prices.send)
            self.traffic.note(effect.message, size)
            left = self._io(self.now, prices.io_send)
            self.at(left + LATENCY, partial(self._by_route[effect.route], effect.message))


def clock_cost() -> float:
    """Return what reading the clock twice adds to a measured time."""
    times = []
    for _ in range(2000):
        began = time.thread_time()
        times.append(time.thread_time() - began)
    return sorted(times)[len(times) // 2]


CLOCK_COST = clock_cost()


def without_collector(experiment: Callable[[], Any]) -> Any:
    """Run an experiment without Python's garbage collector.

    It would look at all Locals, which are not in the process of a real Global.
    """
    gc.collect()
    gc.disable()
    try:
        return experiment()
    finally:
        gc.enable()
