"""The requests of event loops: many at once on one DEALER, within bounds."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from dstore.client.hosts.core import Host
from dstore.client.hosts.replies import verify
from dstore.core.local.steps import Request
from dstore.errors import GlobalUnavailable, ValueCorrupt
from dstore.protocol import wire
from dstore.protocol.messages import REPLIES, Get, Reply, RequestMessage, Scan, Stats
from dstore.transport.channel import Requests

READS = (Get, Scan, Stats)
READS_MAX = 512
"""Reads under way at a time; more wait in line. A Global drops replies for a connection on which
too many stand (1,000, says ZeroMQ), and these would have to be asked for again. Other requests may
take their time, and their replies are small: they are not counted.
"""
IN_FLIGHT_BYTES_MAX = 8 << 20
"""Bytes of requests that are sent and not answered; beyond this others wait in line. A Global cuts
a connection on which too many bytes wait to be taken.
"""
BATCH = 100
"""Requests that are sent before the lock is taken again."""


class Sender:
    """The place of one call in the pipeline. It waits for the reply to one request at a time."""

    __slots__ = ("in_flight", "number", "request", "sent")

    def __init__(self) -> None:
        self.request: Request | None = None  # that it waits for now
        self.sent = False  # whether that has been sent
        self.number = 0  # of the request that is counted
        self.in_flight: tuple[int, int] | None = None  # bytes and reads that it is counted with

    def __repr__(self) -> str:
        return f"<{type(self).__name__} request={self.request!r} sent={self.sent}>"


class Arrived(NamedTuple):
    """A reply, the sender that waits for it, and what is wrong with a value in it."""

    sender: Sender
    request: Request
    reply: Reply
    damage: ValueCorrupt | None


class Pipeline:
    """Requests that wait to be sent, and senders that wait for replies.

    A request that is sent counts against the bounds until it is answered, or its sender waits for
    something else. A repeat of it does not count again: it takes the place of the first copy.
    ``fresh`` is set when a request has been added that was not tried yet.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.waiting: dict[int, Sender] = {}  # by request number
        self.unsent: OrderedDict[Sender, None] = OrderedDict()
        self.reads = 0
        self.bytes_in_flight = 0
        self.fresh = False
        self._requests: Requests | None = None

    def __repr__(self) -> str:
        return f"<Pipeline waiting={len(self.waiting)} unsent={len(self.unsent)}>"

    # ---- with the lock --------------------------------------------------------------------

    def add(self, sender: Sender, request: Request) -> None:
        """Have a request sent. A repeat is first in line, or keeps its place if it is unsent."""
        if sender.in_flight is not None and sender.number != request.message.request:
            self._uncount(sender)
            self.unsent.pop(sender, None)
        sender.request = request
        self.waiting[request.message.request] = sender
        if sender not in self.unsent:
            self.unsent[sender] = None
            if sender.in_flight is not None:
                self.unsent.move_to_end(sender, last=False)
        self.fresh = True

    def pause(self, sender: Sender) -> None:
        """Note that the time of a request is up. It may be repeated, so it stays counted."""
        request, sender.request, sender.sent = sender.request, None, False
        if request is not None:
            self.waiting.pop(request.message.request, None)

    def remove(self, sender: Sender) -> None:
        """Note that a request is answered, or that its sender does not wait for it any more."""
        self.pause(sender)
        self._uncount(sender)
        self.unsent.pop(sender, None)

    def _uncount(self, sender: Sender) -> None:
        if sender.in_flight is not None:
            size, reads = sender.in_flight
            self.bytes_in_flight -= size
            self.reads -= reads
            sender.in_flight = None

    # ---- in the background thread ---------------------------------------------------------

    def receive(self) -> list[Arrived]:
        """Return the replies that have arrived for senders that wait."""
        arrived: list[Arrived] = []
        if self._requests is None:
            return arrived
        for frame in self._requests.receive():
            reply = self._host.decode(frame)
            if isinstance(reply, REPLIES):
                sender = self.waiting.get(reply.request)
                request = sender.request if sender is not None else None
                if sender is not None and request is not None:
                    damage = _damage(request.message, reply)
                    arrived.append(Arrived(sender, request, reply, damage))
        return arrived

    def waits(self, arrived: Arrived) -> bool:
        """Return whether the sender still waits for this reply. With the lock."""
        sender = arrived.sender
        return (
            self.waiting.get(arrived.reply.request) is sender and sender.request is arrived.request
        )

    def send(self, fail: Callable[[Sender, GlobalUnavailable], None]) -> None:
        """Send the requests that can be sent now, in order.

        If the system gives no socket, ``fail`` is called for each, with the lock.
        """
        if self._requests is None and not self._open(fail):
            return
        assert self._requests is not None
        blocked = False
        while not blocked and (batch := self._next()):
            tried, ahead = [], self.bytes_in_flight
            for sender, request in batch:
                size = 0
                if sender.request is request:
                    frame = wire.encode(request.message)
                    size = len(frame)
                    blocked = not self._requests.send(frame)
                if blocked:
                    break
                tried.append((sender, request, size))
                ahead += size
                if ahead >= IN_FLIGHT_BYTES_MAX:
                    break
            with self._host.lock:
                for sender, request, size in tried:
                    if sender.request is request:
                        self._count(sender, request, size)

    def _count(self, sender: Sender, request: Request, size: int) -> None:
        self._uncount(sender)
        reads = int(isinstance(request.message, READS))
        sender.sent = True
        sender.number, sender.in_flight = request.message.request, (size, reads)
        self.bytes_in_flight += size
        self.reads += reads
        self.unsent.pop(sender, None)

    def _next(self) -> list[tuple[Sender, Request]]:
        """Return the requests to be sent next: repeats at any time, others within the bounds."""
        with self._host.lock:
            room = READS_MAX - self.reads if self.bytes_in_flight < IN_FLIGHT_BYTES_MAX else 0
            if room > 0:
                senders = list(itertools.islice(self.unsent, min(BATCH, room)))
            else:
                repeats = itertools.takewhile(lambda each: each.in_flight is not None, self.unsent)
                senders = list(itertools.islice(repeats, BATCH))
            batch = [(sender, sender.request) for sender in senders]
        return [(sender, request) for sender, request in batch if request is not None]

    def _open(self, fail: Callable[[Sender, GlobalUnavailable], None]) -> bool:
        """Open the socket if there is something to send. Returns whether there is a socket."""
        if not self.unsent:
            return False
        try:
            self._requests = self._host.link.requests()
        except GlobalUnavailable as error:
            with self._host.lock:
                for sender in list(self.unsent):
                    fail(sender, GlobalUnavailable(*error.args))
        return self._requests is not None

    def close(self) -> None:
        """Close the socket."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None


def _damage(request: RequestMessage, reply: Reply) -> ValueCorrupt | None:
    try:
        verify(request, reply)
    except ValueCorrupt as error:
        return error
    return None
