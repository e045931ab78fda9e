"""Global's side: ROUTER for requests, PUB for deletions."""

from __future__ import annotations

import contextlib
import math
import os
import threading

import zmq

from dstore.config import INLINE_BYTES_MAX
from dstore.messages import Buffer
from dstore.transport import addresses
from dstore.transport.channel import rest_of
from dstore.transport.ending import Ending
from dstore.transport.listeners import noted

FRAME_BYTES_MAX = 4 * INLINE_BYTES_MAX
"""A connection that sends more in one frame is cut: it is not one of ours."""
LINGER_MS = 1000
"""How long closing waits for the last replies to leave."""
CLOSE_MAX = 3.0
"""Seconds that closing waits until the ports are free."""
INTERRUPTED_MAX = 0.2
"""The same when Ctrl-C has interrupted binding, and may hold a socket that is half made."""
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
        self._ending = Ending(self._context)
        self._listening: list[int] = []  # descriptors
        self._waking = threading.Lock()  # whoever has it may use the context beside the owner
        with contextlib.ExitStack() as unless_bound:
            unless_bound.push(self._not_to_be)
            self._router = unless_bound.enter_context(self._context.socket(zmq.ROUTER))
            self._pub = unless_bound.enter_context(self._context.socket(zmq.PUB))
            for sock in (self._router, self._pub):
                sock.setsockopt(zmq.LINGER, LINGER_MS)
                sock.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
            with noted(self._router, self._listening), noted(self._pub, self._listening):
                self.address = addresses.bind(self._router, address)
                wanted = publisher or addresses.publisher_default(address)
                self.publisher = addresses.bind(self._pub, wanted)
            self._router.bind(f"inproc://{_WAKE_UP.decode()}")
            unless_bound.pop_all()
        self.advertised = addresses.advertised(self.publisher, self.address)
        self._timeout_ms = -1

    def _not_to_be(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._ending.wait(CLOSE_MAX if isinstance(error, Exception) else INTERRUPTED_MAX)

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
                self._router.send_multipart((route, frame, data), _NOW, copy=False)
        except (zmq.Again, OSError):
            return  # the requester sends again

    def publish(self, frame: bytes) -> None:
        """Send a frame to all who listen. Those that do not keep up miss it."""
        self._pub.send(frame, _NOW)

    def wake(self) -> None:
        """Make :meth:`receive` return soon. From any thread or signal handler.

        Not if somebody else is about to do so; and never in a context that may be gone by now, in
        which ZeroMQ would abort.
        """
        if not self._waking.acquire(blocking=False):
            return
        try:
            with self._context.socket(zmq.DEALER) as sock:
                sock.setsockopt(zmq.LINGER, LINGER_MS)
                sock.setsockopt(zmq.ROUTING_ID, _WAKE_UP)
                sock.connect(f"inproc://{_WAKE_UP.decode()}")
                sock.send(b"", _NOW)
        except zmq.ZMQError:  # it will return by itself
            pass
        finally:
            self._waking.release()

    def forked(self) -> None:
        """In the child: keep the ports no longer than the parent does. Nothing else is touched."""
        for descriptor in self._listening:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._listening.clear()

    def close(self) -> None:
        """Let the last replies leave, then free the ports. Idempotent."""
        self._listening.clear()
        self._waking.acquire(timeout=RECEIVE_MAX)  # for ever; Ctrl-C may have left it taken
        self._router.close()
        self._pub.close()
        self._ending.wait(CLOSE_MAX)
