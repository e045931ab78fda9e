"""One DEALER for the requests of event loops: many at once, and nothing blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import zmq

from dstore.transport.follower import CONTROL_SILENCE_MS, Follower
from dstore.transport.route import Route

DRAIN_MAX = 1000
"""Replies taken at a time."""


class Requests:
    """For the one thread that owns it, and polls with ``poller``."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], route: Route, poller: zmq.Poller
    ) -> None:
        # No large value travels here: a connection that is silent for so long is lost.
        self._follower = Follower(context, zmq.DEALER, CONTROL_SILENCE_MS, route)
        self._socket = self._follower.socket
        self._poller = poller
        self._poller.register(self._socket, zmq.POLLIN)

    def send(self, frame: bytes) -> bool:
        """Send a frame, if that can be done now. If not, the poll returns when it can."""
        self._follower.follow()
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._poller.register(self._socket, zmq.POLLIN | zmq.POLLOUT)
            return False
        return True

    def receive(self) -> Iterator[bytes]:
        """The frames that have arrived. No message with two is asked for here."""
        self._poller.register(self._socket, zmq.POLLIN)
        with contextlib.suppress(zmq.Again):
            for _ in range(DRAIN_MAX):
                yield self._socket.recv(zmq.NOBLOCK)

    def close(self) -> None:
        self._poller.unregister(self._socket)
        self._socket.close()
