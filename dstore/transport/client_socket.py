"""What all sockets of a Local have in common: their options, and how they find Global."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import zmq

from dstore.config import LOG_BYTES_MAX
from dstore.errors import GlobalUnavailable
from dstore.transport import binding, limits

CONTROL_SILENCE_MS = 10_000
"""Milliseconds without a byte after which either side drops a control connection; the Local then
makes a new one.
"""
REQUEST_SILENCE_MS = 60_000
"""The same for a request channel, where one large value may be under way for long."""
HEARTBEAT_MS = 1000
"""Milliseconds between two heartbeats on an idle connection."""
RECONNECT_MS = 50
"""Milliseconds before ZeroMQ connects again; the pause doubles with each attempt."""
RECONNECT_MS_MAX = 1000
"""Milliseconds between two attempts to connect at most."""
DRAIN_MAX = 1000
"""Frames that are taken from one socket before another gets its turn."""
_OPTIONS = {
    zmq.MAXMSGSIZE: LOG_BYTES_MAX,  # the largest message of Global: the whole invalidation log
    zmq.LINGER: 0,
    zmq.IMMEDIATE: 1,  # nothing is queued for a Global that is not connected
    zmq.RECONNECT_IVL: RECONNECT_MS,
    zmq.RECONNECT_IVL_MAX: RECONNECT_MS_MAX,
    zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
}


class EndpointSource(Protocol):
    """Says where to connect to now: a literal address, or None if that is not known."""

    @property
    def endpoint(self) -> str | None: ...


class ClientSocket:
    """A ZeroMQ socket that is connected to the endpoint of its source, and to nothing else: a
    DEALER with two connections would send to both in turn. For one thread at a time.

    Raises AddressError if ZeroMQ cannot connect to the endpoint at all.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        silence_ms: int,
        source: EndpointSource | None = None,
    ) -> None:
        self.source = source
        self._connected_to: str | None = None
        self.socket = context.socket(kind)
        try:
            for option, value in _OPTIONS.items():
                self.socket.setsockopt(option, value)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, silence_ms)
            self.socket.setsockopt(zmq.HEARTBEAT_TTL, silence_ms)
            self.follow_source()
        except BaseException:
            self.socket.close()
            raise

    def __repr__(self) -> str:
        return f"<ClientSocket connected_to={self._connected_to} source={self.source!r}>"

    @property
    def connects(self) -> bool:
        """Whether the socket is connected, or ZeroMQ is trying to connect it."""
        return self._connected_to is not None

    def follow_source(self) -> None:
        """Connect to the present endpoint of the source, if that is known and has changed."""
        endpoint = self.source.endpoint if self.source is not None else None
        if endpoint == self._connected_to or endpoint is None:
            return
        self.disconnect()
        binding.connect(self.socket, endpoint)
        self._connected_to = endpoint

    def disconnect(self) -> None:
        """Give the connection up, if there is one."""
        endpoint, self._connected_to = self._connected_to, None
        if endpoint is not None:
            self.socket.disconnect(endpoint)


@contextlib.contextmanager
def opening_channel() -> Iterator[None]:
    """Check that there are descriptors for one more channel, and translate ZeroMQ's errors.

    Raises GlobalUnavailable if the system gives no more sockets, NodeClosed if the context has been
    terminated.
    """
    try:
        limits.need_descriptors(limits.CHANNEL_DESCRIPTORS)
        yield
    except limits.Shortage as shortage:
        raise GlobalUnavailable(str(shortage)) from None
    except zmq.ZMQError as error:
        if error.errno in (zmq.ETERM, zmq.EFAULT):
            raise binding.node_closed() from None
        raise GlobalUnavailable(limits.no_socket(error)) from None


def drain(sock: zmq.Socket[bytes]) -> list[bytes]:
    """Take the frames that have arrived, at most ``DRAIN_MAX``."""
    frames: list[bytes] = []
    try:
        while len(frames) < DRAIN_MAX:
            frames.append(sock.recv(zmq.NOBLOCK))
    except zmq.Again:
        pass
    return frames
