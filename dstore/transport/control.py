"""A Local's control side: one DEALER for leases, one SUB for deletions."""

from __future__ import annotations

import contextlib
import math

import zmq

from dstore.transport import addresses
from dstore.transport.channel import CONTROL_SILENCE_MS, connected
from dstore.transport.waker import Waker

DRAIN_MAX = 1000
"""Frames taken from one socket before the other gets its turn."""


class Control:
    """For the one thread that owns it, but for :meth:`wake`.

    ``poller`` has all that the thread waits for; others may be registered there.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._address = address
        self._publisher: str | None = None
        self._waker = Waker()
        self._dealer = connected(context, zmq.DEALER, address, CONTROL_SILENCE_MS)
        self._sub = connected(context, zmq.SUB, None, CONTROL_SILENCE_MS)
        self._topics: set[bytes] = set()
        self._monitors = [
            sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            for sock in (self._dealer, self._sub)
        ]
        self.poller = zmq.Poller()
        for polled in (self._sub, self._dealer, *self._monitors, self._waker.fileno()):
            self.poller.register(polled, zmq.POLLIN)

    def wait(self, timeout: float) -> tuple[list[bytes], bool]:
        """What happens within ``timeout`` seconds (may be infinite): the frames that have arrived,
        deletions first, and whether a connection has come up.
        """
        milliseconds = None if timeout == math.inf else math.ceil(max(0.0, timeout) * 1000)
        frames: list[bytes] = []
        up = False
        for polled, _ in self.poller.poll(milliseconds):
            if polled is self._sub or polled is self._dealer:
                _drain(polled, frames)
            elif polled == self._waker.fileno():
                self._waker.drain()
            elif polled in self._monitors:
                up |= _drain(polled, [])
        return frames, up

    def send(self, frame: bytes) -> None:
        """Send a frame, or drop it if Global is not there."""
        with contextlib.suppress(zmq.Again):
            self._dealer.send(frame, zmq.NOBLOCK)

    def subscribe(self, publisher: str) -> None:
        """Hear deletions at ``publisher``, and nowhere else. Raises AddressError."""
        publisher = addresses.resolved(publisher, self._address)
        if publisher == self._publisher:
            return
        addresses.connect(self._sub, addresses.check(publisher))
        if self._publisher is not None:
            self._sub.disconnect(self._publisher)
        self._publisher = publisher

    def hear(self, topics: set[bytes]) -> None:
        """Hear what is published and begins with one of these, and nothing else."""
        for topic in topics - self._topics:
            self._sub.setsockopt(zmq.SUBSCRIBE, topic)
        for topic in self._topics - topics:
            self._sub.setsockopt(zmq.UNSUBSCRIBE, topic)
        self._topics = topics

    def wake(self) -> None:
        self._waker.wake()

    def close(self) -> None:
        for sock, monitor in zip((self._dealer, self._sub), self._monitors):
            sock.disable_monitor()
            monitor.close()
            sock.close()
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
