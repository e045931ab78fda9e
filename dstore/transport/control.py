"""A Local's control side: one DEALER for leases, one SUB for deletions."""

from __future__ import annotations

import contextlib
import math
import sys

import zmq

from dstore.errors import AddressError, GlobalUnavailable
from dstore.runtime.waker import Waker
from dstore.transport import addresses
from dstore.transport.follower import CONTROL_SILENCE_MS, Follower
from dstore.transport.route import Beside, Route

DRAIN_MAX = 1000
"""Frames taken from one socket before the other gets its turn."""
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_CONNECT_RETRIED


class Control:
    """For the one thread that owns it, but for :meth:`wake`.

    ``poller`` has all that the thread waits for; others may be registered there. ``route`` is the
    way to Global, for all sockets of the Local.

    A connection that is lost is made again by ZeroMQ, if the address is a literal one. A name may
    mean another address by then, and whatever listens at the former one need not be our Global: so
    the connection is given up, and the name is looked up.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._publisher: str | None = None
        self._topics: set[bytes] = set()
        self._waker = Waker()
        try:
            self.route = Route(address, self._waker.wake)
            self._dealer = Follower(context, zmq.DEALER, CONTROL_SILENCE_MS, self.route)
            self._sub = Follower(context, zmq.SUB, CONTROL_SILENCE_MS)
            self._followers = (self._dealer, self._sub)
            self._monitors = [each.socket.get_monitor_socket(_EVENTS) for each in self._followers]
            if not self.route.literal and not self.route.seek():
                raise GlobalUnavailable(self.route.trouble)
        except BaseException:
            self._waker.close()
            raise
        self.poller = zmq.Poller()
        sockets = (self._sub.socket, self._dealer.socket, *self._monitors)
        for polled in (*sockets, self._waker.fileno()):
            self.poller.register(polled, zmq.POLLIN)

    @property
    def trouble(self) -> str:
        """Why Global is not reached, as far as that is known; empty once it is."""
        return self.route.trouble

    def wait(self, timeout: float) -> tuple[list[bytes], bool]:
        """What happens within ``timeout`` seconds (may be infinite): the frames that have arrived,
        deletions first, and whether a connection has come up.
        """
        milliseconds = None if timeout == math.inf else math.ceil(max(0.0, timeout) * 1000)
        frames: list[bytes] = []
        up = False
        for follower in self._followers:
            follower.follow()
        for polled, _ in self.poller.poll(milliseconds):
            if polled is self._sub.socket or polled is self._dealer.socket:
                _drain(polled, frames)
            elif polled == self._waker.fileno():
                self._waker.drain()
            elif polled in self._monitors:
                up |= self._note(polled)
        return frames, up

    def _note(self, monitor: zmq.Socket[bytes]) -> bool:
        """Note what has become of a connection. Whether it is up."""
        told: list[bytes] = []
        if not _drain(monitor, told):
            return False
        follower = self._followers[self._monitors.index(monitor)]
        # An event is two frames: its number (of 16 bits) with a value, and the endpoint.
        up = int.from_bytes(told[-2][:2], sys.byteorder) == zmq.EVENT_HANDSHAKE_SUCCEEDED
        route = follower.way
        if isinstance(route, Route) and follower.connects:
            if up:
                route.arrived()
            elif follower is self._dealer or not route.literal:
                sought = route.seek()
                if sought and not route.literal:
                    follower.leave()
        return up

    def send(self, frame: bytes) -> None:
        """Send a frame, or drop it if Global is not there."""
        with contextlib.suppress(zmq.Again):
            self._dealer.socket.send(frame, zmq.NOBLOCK)

    def subscribe(self, publisher: str) -> None:
        """Hear deletions at ``publisher``, and nowhere else. Raises AddressError."""
        if publisher == self._publisher:
            return
        addresses.check(addresses.resolved(publisher, self.route.address))
        if isinstance(self._sub.way, Route):
            self._sub.way.stop()
        if addresses.is_literal(publisher) or addresses.is_beside(publisher):
            self._sub.way = Beside(self.route, publisher)
        else:
            self._sub.way = named = Route(publisher, self._waker.wake)
            if not named.seek():
                raise AddressError(f"cannot look for {publisher}: {named.trouble}")
        self._sub.follow()
        self._publisher = publisher

    def hear(self, topics: set[bytes]) -> None:
        """Hear what is published and begins with one of these, and nothing else."""
        for topic in topics - self._topics:
            self._sub.socket.setsockopt(zmq.SUBSCRIBE, topic)
        for topic in self._topics - topics:
            self._sub.socket.setsockopt(zmq.UNSUBSCRIBE, topic)
        self._topics = topics

    def wake(self) -> None:
        self._waker.wake()

    def close(self) -> None:
        for follower, monitor in zip(self._followers, self._monitors):
            if isinstance(follower.way, Route):
                follower.way.stop()
            follower.socket.disable_monitor()
            monitor.close()
            follower.socket.close()
        self._waker.close()


def _drain(sock: zmq.Socket[bytes], into: list[bytes]) -> bool:
    """Take what has arrived. Whether anything had."""
    before = len(into)
    try:
        while len(into) < before + DRAIN_MAX:
            into.append(sock.recv(zmq.NOBLOCK))
    except zmq.Again:
        pass
    return len(into) > before
