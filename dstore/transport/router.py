"""Global's side: ROUTER for requests, PUB for deletions."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import zmq

from dstore.config import INLINE_BYTES_MAX
from dstore.messages import Buffer
from dstore.transport import addresses
from dstore.transport.channel import rest_of
from dstore.transport.waker import Waker

FRAME_BYTES_MAX = 4 * INLINE_BYTES_MAX
"""A connection that sends more in one frame is cut: it is not one of ours."""
LINGER_MS = 1000
"""How long closing waits for the last replies to leave."""


class Router:
    """Both sockets of a Global, bound. For one thread, but for :meth:`wake`.

    Raises AddressError if either address cannot be bound.
    """

    def __init__(self, address: str, publisher: str | None) -> None:
        addresses.check(address, bind=True)
        self._waker = Waker()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._pub = self._context.socket(zmq.PUB)
        try:
            for sock in (self._router, self._pub):
                sock.setsockopt(zmq.LINGER, LINGER_MS)
                sock.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
            self.address = addresses.bind(self._router, address)
            wanted = publisher or addresses.publisher_default(address)
            self.publisher = addresses.bind(self._pub, wanted)
        except BaseException:
            self.close()
            raise
        self.advertised = addresses.advertised(self.publisher, self.address)
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._waker.fileno(), zmq.POLLIN)

    def wait(self, timeout: float) -> None:
        """Wait for a frame or a wake-up, at most ``timeout`` seconds (may be infinite)."""
        milliseconds = None if timeout == math.inf else max(0, math.ceil(timeout * 1000))
        if any(ready == self._waker.fileno() for ready, _ in self._poller.poll(milliseconds)):
            self._waker.drain()

    def receive(self) -> tuple[bytes, bytes, Buffer | None] | None:
        """The route, the frame and the second frame (or None) of what has arrived, or None."""
        try:
            route: bytes = self._router.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        frame: bytes = self._router.recv() if self._router.getsockopt(zmq.RCVMORE) else b""
        return route, frame, rest_of(self._router)

    def send(self, route: bytes, frame: bytes, data: Buffer | None = None) -> None:
        """Send a frame (and ``data`` as another, from where it lies). It is dropped if the peer
        has gone away or does not keep up.
        """
        try:
            if data is None:
                self._router.send_multipart((route, frame), zmq.NOBLOCK)
            else:
                self._router.send_multipart((route, frame, data), zmq.NOBLOCK, copy=False)
        except (zmq.Again, OSError):
            return  # the requester sends again

    def publish(self, frame: bytes) -> None:
        """Send a frame to all who listen. Those that do not keep up miss it."""
        self._pub.send(frame, zmq.NOBLOCK)

    def wake(self) -> None:
        self._waker.wake()

    def woken_by_signals(self) -> AbstractContextManager[None]:
        return self._waker.woken_by_signals()

    def close(self) -> None:
        """Let the last replies leave, then free the ports."""
        self._router.close()
        self._pub.close()
        self._context.term()
        self._waker.close()
