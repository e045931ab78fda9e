"""The connections of one bound socket, kept up to date by ZeroMQ's monitor events."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import zmq
from zmq.utils.monitor import parse_monitor_message

from dstore.config import share_of
from dstore.transport import kernel
from dstore.transport.connection import Connection

_EVENTS = int(zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)


class ConnectionTable:
    """The connections of one socket, by descriptor. Create it before the socket is bound.

    At most ``connections_max`` are accepted, of which one source address may have a share.
    """

    def __init__(self, sock: zmq.Socket[bytes], name: str, connections_max: int) -> None:
        self.connections: dict[int, Connection] = {}
        self.count_by_source: Counter[str] = Counter()
        self.listening: list[int] = []  # descriptors on which the socket accepts connections
        self.published = 0  # bytes published to all, if this is the PUB socket
        self._connections_max = connections_max
        self._sock = sock
        endpoint = f"inproc://{name}"
        sock.monitor(endpoint, _EVENTS)
        self._monitor = sock.context.socket(zmq.PAIR)
        # No limit: ZeroMQ's I/O thread would block until there is room for an event.
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(endpoint)

    def changes(self, now: float) -> Iterator[tuple[Connection | None, Connection | None]]:
        """Update the table; yields the connection that has ended and the one that has begun.

        Each may be None; both are given when a descriptor is used again.
        """
        for begun, fd in self._events():
            ended = self.connections.pop(fd, None)
            if ended is not None and ended.source is not None:
                self.count_by_source[ended.source] -= 1
                if not self.count_by_source[ended.source]:
                    del self.count_by_source[ended.source]
            connection = None
            if begun:
                connection = Connection(fd, kernel.peer_name_of(fd), self.published, now)
                self.connections[fd] = connection
                if connection.source is not None:
                    self.count_by_source[connection.source] += 1
            yield ended, connection

    def violation(self, connection: Connection) -> str | None:
        """Why the newest connection is one too many, or None."""
        if len(self.connections) > self._connections_max:
            return (
                f"{self._connections_max} connections are here: raise --max-clients, or the limit "
                "of open files (ulimit -n)"
            )
        source, share = connection.source, share_of(self._connections_max)
        if source is not None and self.count_by_source[source] > share:
            return f"{share} connections from there are here"
        return None

    def _events(self) -> Iterator[tuple[bool, int]]:
        """Whether a connection has begun (or else ended), and its descriptor, for each event."""
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
                if event["event"] == zmq.EVENT_LISTENING:
                    self.listening.append(int(event["value"]))
                else:
                    yield event["event"] == zmq.EVENT_ACCEPTED, int(event["value"])

    def close(self) -> None:
        if not self._monitor.closed:
            self._sock.disable_monitor()
            self._monitor.close()
