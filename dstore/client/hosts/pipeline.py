"""The requests of event loops: many at once on one DEALER, within bounds."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable

from dstore.client.hosts.calls import LoopCall
from dstore.client.hosts.channels import verify
from dstore.client.hosts.core import Host
from dstore.core.local.steps import Request
from dstore.errors import GlobalUnavailable, ValueCorrupt
from dstore.protocol import wire
from dstore.protocol.messages import REPLIES, Get, Reply, Scan, Stats
from dstore.transport.channel import Requests

READS = (Get, Scan, Stats)
READS_MAX = 512
"""Reads under way at a time; more wait in line. A Global drops replies for a connection on which
too many are queued (ZeroMQ's default: 1,000); they would be requested again. Other requests may
take their time, and their replies are small: they are not counted.
"""
IN_FLIGHT_BYTES_MAX = 8 << 20
"""Bytes of requests that are sent and not answered; beyond this others wait in line. A Global cuts
a connection on which too many bytes wait to be taken.
"""
BATCH = 100
"""Requests that are sent before the lock is taken again."""


class Pipeline:
    """Requests that wait to be sent, and calls that wait for replies.

    A request that is sent counts against the bounds until it is answered, or its call waits for
    something else. A repeat of it does not count again: it takes the place of the first copy.
    ``fresh`` is set when a request has been added and no attempt was made to send it.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.waiting: dict[int, LoopCall] = {}  # by request number
        self.unsent: OrderedDict[LoopCall, None] = OrderedDict()
        self.reads = 0
        self.bytes_in_flight = 0
        self.fresh = False
        self._requests: Requests | None = None

    def add(self, call: LoopCall, request: Request) -> None:
        """Have a request sent. A repeat is first in line, or keeps its place if it is unsent."""
        if call.in_flight is not None and call.number != request.message.request:
            self._uncount(call)
            self.unsent.pop(call, None)
        call.request = request
        self.waiting[request.message.request] = call
        if call not in self.unsent:
            self.unsent[call] = None
            if call.in_flight is not None:
                self.unsent.move_to_end(call, last=False)
        self.fresh = True

    def pause(self, call: LoopCall) -> None:
        """Note that the time of a request is up. It may be repeated, so it stays counted."""
        request, call.request, call.sent = call.request, None, False
        if request is not None:
            self.waiting.pop(request.message.request, None)

    def remove(self, call: LoopCall) -> None:
        """Note that a request is answered, or that its call does not wait for it any more."""
        self.pause(call)
        self._uncount(call)
        self.unsent.pop(call, None)

    def _uncount(self, call: LoopCall) -> None:
        if call.in_flight is not None:
            size, reads = call.in_flight
            self.bytes_in_flight -= size
            self.reads -= reads
            call.in_flight = None

    def receive(self) -> list[tuple[LoopCall, Reply, ValueCorrupt | None]]:
        """Return the calls whose replies have arrived, the replies, and what is wrong with them."""
        arrived = []
        for frame in self._requests.receive() if self._requests is not None else ():
            reply = self._host.decode(frame)
            if isinstance(reply, REPLIES):
                call = self.waiting.get(reply.request)
                request = call.request if call is not None else None
                if call is not None and request is not None:
                    damage = None
                    try:
                        verify(request.message, reply, self._host.state.addresses)
                    except ValueCorrupt as error:
                        damage = error
                    arrived.append((call, reply, damage))
        return arrived

    def send(self, fail: Callable[[LoopCall, GlobalUnavailable], None]) -> None:
        """Send what can be sent now, in order.

        If the system gives no socket, ``fail`` is called for each request, with the lock.
        """
        if self._requests is None and self.unsent:
            try:
                self._requests = self._host.link.requests()
            except GlobalUnavailable as error:
                with self._host.lock:
                    for call in list(self.unsent):
                        fail(call, GlobalUnavailable(*error.args))
        requests = self._requests
        blocked = False
        while requests is not None and not blocked and (batch := self._next()):
            tried, ahead = [], self.bytes_in_flight
            for call, request in batch:
                size = 0
                if call.request is request:
                    frame = wire.encode(request.message)
                    size = len(frame)
                    blocked = not requests.send(frame)
                if blocked:
                    break
                tried.append((call, request, size))
                ahead += size
                if ahead >= IN_FLIGHT_BYTES_MAX:
                    break
            with self._host.lock:
                for call, request, size in tried:
                    if call.request is request:
                        self._count(call, request, size)

    def _count(self, call: LoopCall, request: Request, size: int) -> None:
        self._uncount(call)
        reads = int(isinstance(request.message, READS))
        call.sent = True
        call.number, call.in_flight = request.message.request, (size, reads)
        self.bytes_in_flight += size
        self.reads += reads
        self.unsent.pop(call, None)

    def _next(self) -> list[tuple[LoopCall, Request]]:
        """Return the requests to be sent next: repeats at any time, others within the bounds."""
        with self._host.lock:
            room = READS_MAX - self.reads if self.bytes_in_flight < IN_FLIGHT_BYTES_MAX else 0
            if room > 0:
                calls = list(itertools.islice(self.unsent, min(BATCH, room)))
            else:
                repeats = itertools.takewhile(lambda each: each.in_flight is not None, self.unsent)
                calls = list(itertools.islice(repeats, BATCH))
            batch = [(call, call.request) for call in calls]
        return [(call, request) for call, request in batch if request is not None]

    def close(self) -> None:
        """Close the socket."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
