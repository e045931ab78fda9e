"""One DEALER for the requests of event loops: many at once, and nothing blocks."""

from __future__ import annotations

import zmq

from dstore.transport.client_socket import CONTROL_SILENCE_MS, ClientSocket, drain
from dstore.transport.resolver import Resolver


class Requests:
    """For the thread that owns it and polls with ``poller``."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], resolver: Resolver, poller: zmq.Poller
    ) -> None:
        # No large value travels here, so a connection that is silent for 10 seconds is lost.
        self._client = ClientSocket(context, zmq.DEALER, CONTROL_SILENCE_MS, resolver)
        self._socket = self._client.socket
        self._poller = poller
        self._poller.register(self._socket, zmq.POLLIN)

    def send(self, frame: bytes) -> bool:
        """Send a frame if that is possible now; otherwise the poll returns when it is."""
        self._client.follow_source()
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._poller.register(self._socket, zmq.POLLIN | zmq.POLLOUT)
            return False
        return True

    def receive(self) -> list[bytes]:
        """Take the frames that have arrived. No message with data is requested here."""
        self._poller.register(self._socket, zmq.POLLIN)
        return drain(self._socket)

    def close(self) -> None:
        self._poller.unregister(self._socket)
        self._socket.close()
