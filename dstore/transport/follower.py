"""What all sockets of a Local have in common: options, and the endpoint that they follow."""

from __future__ import annotations

from typing import Protocol

import zmq

from dstore.config import LOG_BYTES_MAX
from dstore.transport import addresses

_OPTIONS = {
    zmq.MAXMSGSIZE: LOG_BYTES_MAX,  # what Global sends at the most: the whole deletion log
    zmq.LINGER: 0,
    zmq.IMMEDIATE: 1,  # nothing is queued for a Global that is not there: it was not sent
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.HEARTBEAT_IVL: 1000,
}
CONTROL_SILENCE_MS = 10_000
"""A control connection on which nothing comes for so long is dropped, by either side; the Local
makes a new one.
"""
REQUEST_SILENCE_MS = 60_000
"""The same of a request channel, where one large value may be under way for long."""


class Way(Protocol):
    """Where to connect to at present, a literal address; None if that is not known."""

    @property
    def endpoint(self) -> str | None: ...


class Follower:
    """A socket that is connected to the endpoint of its way, and to nothing else: a DEALER that is
    connected to two sends to both in turn. For one thread at a time.

    Raises AddressError if ZeroMQ cannot connect to the endpoint at all.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        silence_ms: int,
        way: Way | None = None,
    ) -> None:
        self.way = way
        self._at: str | None = None
        self.socket = context.socket(kind)
        try:
            for option, value in _OPTIONS.items():
                self.socket.setsockopt(option, value)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, silence_ms)
            self.socket.setsockopt(zmq.HEARTBEAT_TTL, silence_ms)
            self.follow()
        except BaseException:
            self.socket.close()
            raise

    def __repr__(self) -> str:
        return f"<Follower at={self._at} way={self.way!r}>"

    @property
    def connects(self) -> bool:
        """Whether it is connected, or is trying by itself."""
        return self._at is not None

    def follow(self) -> None:
        """Connect to where the way leads by now, if that is known and has changed."""
        endpoint = self.way.endpoint if self.way is not None else None
        if endpoint == self._at or endpoint is None:
            return
        self.leave()
        addresses.connect(self.socket, endpoint)
        self._at = endpoint

    def leave(self) -> None:
        """Be connected to nothing."""
        at, self._at = self._at, None
        if at is not None:
            self.socket.disconnect(at)
