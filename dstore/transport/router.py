"""Global's side: ROUTER for requests, PUB for deletions."""

from __future__ import annotations

import math

import zmq

from dstore import native
from dstore.config import INLINE_BYTES_MAX
from dstore.messages import Buffer
from dstore.transport import addresses
from dstore.transport.channel import rest_of

FRAME_BYTES_MAX = 4 * INLINE_BYTES_MAX
"""A connection that sends more in one frame is cut: it is not one of ours."""
LINGER_MS = 1000
"""How long closing waits for the last replies to leave."""
RECEIVE_MAX = 0.5
"""Seconds of waiting in one go. A signal that comes in the instant before a wait begins is noticed
by Python only after it.
"""
_NOW = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_WAKE_UP = b"wake-up"
"""Where, and as whom, a thread says that the other one is not to wait any more."""


class Router:
    """Both sockets of a Global, bound. For one thread, but for :meth:`wake`.

    Raises AddressError if either address cannot be bound.
    """

    def __init__(self, address: str, publisher: str | None) -> None:
        addresses.check(address, bind=True)
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
            self._router.bind(f"inproc://{_WAKE_UP.decode()}")
        except BaseException:
            self.close()
            raise
        self.advertised = addresses.advertised(self.publisher, self.address)
        self._timeout_ms = -1

    def receive(self, timeout: float) -> tuple[bytes, bytes, Buffer | None] | None:
        """The route, the frame and the second frame (or None) of what comes next.

        None if nothing comes within ``timeout`` seconds (of which it may take fewer).
        """
        milliseconds = math.ceil(max(0.0, min(timeout, RECEIVE_MAX)) * 1000)
        if milliseconds != self._timeout_ms:
            self._timeout_ms = milliseconds
            self._router.setsockopt(zmq.RCVTIMEO, milliseconds)
        try:
            route: bytes = self._router.recv()
        except zmq.Again:
            return None
        frame: bytes = self._router.recv()
        data = rest_of(self._router)
        return None if route == _WAKE_UP else (route, frame, data)

    def send(self, route: bytes, frame: bytes, data: Buffer | None = None) -> None:
        """Send a frame (and ``data`` as another, from where it lies). It is dropped if the peer
        has gone away or does not keep up.
        """
        try:
            if data is None:
                self._router.send(route, _MORE)
                self._router.send(frame, _NOW)
            else:
                # pyzmq frees what it does not copy in a thread, which has to be one.
                self._router.send_multipart((route, frame, data), _NOW, copy=native.patched())
        except (zmq.Again, OSError):
            return  # the requester sends again

    def publish(self, frame: bytes) -> None:
        """Send a frame to all who listen. Those that do not keep up miss it."""
        self._pub.send(frame, _NOW)

    def wake(self) -> None:
        """Make :meth:`receive` return soon. From any thread or signal handler."""
        try:
            with self._context.socket(zmq.DEALER) as sock:
                sock.setsockopt(zmq.LINGER, LINGER_MS)
                sock.setsockopt(zmq.ROUTING_ID, _WAKE_UP)
                sock.connect(f"inproc://{_WAKE_UP.decode()}")
                sock.send(b"", _NOW)
        except zmq.ZMQError:  # it is closed; or it will return by itself
            pass

    def close(self) -> None:
        """Let the last replies leave, then free the ports."""
        self._router.close()
        self._pub.close()
        self._context.term()
