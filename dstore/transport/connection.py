"""One connection to Global: what it has sent and read, and the limits for a single connection.

ZeroMQ does not say how many bytes of a connection it holds in memory. The kernel says how many
bytes each TCP connection has received, and how many of the bytes sent on it have been acknowledged
(``TCP_INFO``). The difference to what Global has taken out of the socket, and has put into it, is
what ZeroMQ holds.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeVar

import zmq
from zmq.utils.monitor import parse_monitor_message

from dstore.config import FRAME_BYTES_MAX, share_of
from dstore.core.authority.identity import Identity
from dstore.runtime.native import sockets
from dstore.transport import kernel
from dstore.transport.kernel import PeerName

UNREAD_MAX = 64 << 20
"""Bytes of one connection that ZeroMQ may hold. An honest Local has at most 8 MiB under way."""
UNFINISHED_MAX = FRAME_BYTES_MAX + (64 << 10)
"""Bytes of one message that has not arrived completely."""
REPLIES_MAX = 64 << 20
"""Bytes of replies that one peer has not acknowledged. More are dropped; the peer asks again."""
STALLED_SECONDS = 10.0
"""Seconds after which a peer is cut that has replies to read and acknowledges nothing."""
PUBLISHED_AHEAD_MAX = 16 << 20
"""Bytes that may be published while a subscriber acknowledges nothing."""
SUBSCRIPTION_BYTES_MAX = 192
"""Bytes that a subscriber may send, besides its handshake and its heartbeats. A Local has two
topics of five bytes. ZeroMQ keeps up to 150 bytes for each byte of a topic, and visits all topics
whenever a subscriber leaves.
"""
HEARTBEAT_BYTES = 16
"""Bytes a second that are taken for heartbeats; a Local sends 9."""
HEARTBEATS_SAVED_MAX = 16 << 10
"""Bytes of heartbeats that may arrive at once."""
HANDSHAKE_BYTES = 256
"""Bytes that a connection may send before its first message."""
CURVE_HANDSHAKE_BYTES = 832
"""The same with CURVE; an honest peer sends 565."""
CURVE_FRAME_BYTES = 33
"""Bytes that CURVE adds to each frame: a name, a nonce, flags and a seal."""
CURVE_HEARTBEAT_BYTES = 56
"""Bytes a second that are taken for heartbeats with CURVE; a Local sends 42."""
CURVE_SUBSCRIPTION_BYTES_MAX = 384
"""The same as ``SUBSCRIPTION_BYTES_MAX`` with CURVE, where each topic has a frame of its own."""
_FAILURES = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_BROKEN_OFF = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_EVENTS = int(zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | _FAILURES)


class Wire(NamedTuple):
    """What ZeroMQ's protocol sends beside the bytes of messages, in bytes."""

    handshake: int  # at most, before the first message
    frame: int  # of each frame, beside its head
    heartbeats: int  # at most, each second
    subscriptions: int  # at most, of a subscriber, besides its handshake and heartbeats


PLAIN = Wire(HANDSHAKE_BYTES, 0, HEARTBEAT_BYTES, SUBSCRIPTION_BYTES_MAX)
CURVE = Wire(
    CURVE_HANDSHAKE_BYTES, CURVE_FRAME_BYTES, CURVE_HEARTBEAT_BYTES, CURVE_SUBSCRIPTION_BYTES_MAX
)


class Denied(Enum):
    """Why a handshake has failed. The value is for people."""

    UNKNOWN_KEY = "its key is not known here, or was revoked"
    OTHER_MECHANISM = "only one of both sides uses keys"
    OTHER_SERVER_KEY = "it expects another server key"
    MALFORMED = "it does not follow ZeroMQ's protocol"
    BROKEN_OFF = "it ended in the middle of the handshake, as one without keys does"


_PROTOCOL_FAILURES = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): Denied.OTHER_MECHANISM,
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): Denied.OTHER_SERVER_KEY,
}


class _Check(NamedTuple):
    """The state of a connection at an earlier check; see :meth:`Connection.update_unfinished`."""

    messages: int
    rounds: int
    unread: int


@dataclass(eq=False, slots=True)
class Connection:
    """One connection to Global. Counters are bytes since it began, times are seconds."""

    fd: int
    peer: PeerName | None  # None if it is not TCP
    published_at_progress: int  # bytes published to all by ``progress_at``
    checked_at: float
    wire: Wire = PLAIN
    previous: _Check = field(init=False)
    progress_at: float = field(init=False)  # when ``acknowledged`` last grew, or had no reason to
    source: str | None = field(init=False)
    route: bytes | None = None  # known once a message has come
    identity: Identity | None = None  # the same, if Global has keys
    cut: bool = False
    begun_at: float = field(init=False)  # when Global has noticed it
    counters_unsure: bool = False  # they may include bytes of an earlier connection
    heartbeat_credit: float = 0.0  # bytes that may still be taken for heartbeats
    heartbeat_bytes: int = 0  # bytes that were taken for heartbeats
    taken: int = 0  # by Global, out of ZeroMQ's socket, with the heads of frames
    messages: int = 0
    received: int = 0  # by ZeroMQ
    replies: int = 0  # given to ZeroMQ
    acknowledged: int = 0  # by the peer
    unfinished: int = 0  # of a message that has begun and not ended

    def __post_init__(self) -> None:
        self.source = _source(self.peer)
        self.progress_at = self.begun_at = self.checked_at
        self.previous = _Check(-1, 0, 0)

    @property
    def unread(self) -> int:
        """A lower bound of the bytes that ZeroMQ holds."""
        return self.received - self.taken - self.wire.handshake - self.heartbeat_bytes

    @property
    def unacknowledged(self) -> int:
        """Bytes of replies that the peer has not acknowledged, approximately."""
        return max(0, self.replies - self.acknowledged)

    def refresh(self, published: int, now: float) -> bool:
        """Update the counters from the kernel; ``published`` is bytes published to all so far.

        Returns False if the connection has ended, or is not TCP.
        """
        counts = None if self.peer is None else kernel.byte_counts(self.fd, self.peer)
        if counts is None:
            return False
        acknowledged, self.received = counts
        if acknowledged != self.acknowledged:
            self.acknowledged, self.progress_at = acknowledged, now
            self.published_at_progress = published
        self.discount_heartbeats(now)
        if self.counters_unsure:
            self.counters_unsure = False
            self.taken, self.replies = self.received, acknowledged
        return True

    def discount_heartbeats(self, now: float) -> None:
        """Count a few unread bytes for each second as heartbeats.

        They may arrive late, all at once. But credit that has not been used is bounded, or an old
        connection could have much under way.
        """
        self.heartbeat_credit += self.wire.heartbeats * (now - self.checked_at)
        self.checked_at = now
        used = max(0, min(self.unread, int(self.heartbeat_credit)))
        self.heartbeat_bytes += used
        self.heartbeat_credit = min(self.heartbeat_credit - used, HEARTBEATS_SAVED_MAX)
        if self.unread < -self.wire.handshake:
            # An earlier check counted waiting messages as heartbeats. Or bytes have arrived between
            # the two looks of the kernel's counters, and ``received`` is too low for once.
            self.heartbeat_bytes = max(0, self.heartbeat_bytes + self.unread + self.wire.handshake)

    def update_unfinished(self, rounds: int) -> None:
        """Update how many bytes belong to a message that has not arrived completely.

        ``rounds`` counts how often every connection with a complete message has given one. If this
        connection gave no message between two checks, although it was asked for one, then what
        ZeroMQ held of it at the first check belongs to one message that is not complete.
        """
        previous, gave_none = self.previous, self.messages == self.previous.messages
        if gave_none and rounds <= previous.rounds + 1:
            return  # not every connection has been asked yet
        self.previous = _Check(self.messages, rounds, self.unread)
        self.unfinished = previous.unread if gave_none else 0

    def peer_violation(self, now: float) -> str | None:
        """The limit that a connection to the ROUTER exceeds, as the reason to cut it, or None."""
        if self.unread > UNREAD_MAX:
            return f"more than {UNREAD_MAX:,} bytes of its messages are under way"
        if self.unfinished > UNFINISHED_MAX:
            return f"its message has more than {UNFINISHED_MAX:,} bytes"
        if self.unacknowledged and now - self.progress_at > STALLED_SECONDS:
            return f"it has not read its replies for {STALLED_SECONDS:g} s"
        return None

    def subscriber_violation(self, published: int) -> str | None:
        """The limit that a connection to the PUB socket exceeds, or None."""
        if self.unread > self.wire.subscriptions:
            return f"it subscribes with more than {self.wire.subscriptions:,} bytes"
        if published - self.published_at_progress > PUBLISHED_AHEAD_MAX:
            return "it does not read what is published"
        return None

    def shut_down(self) -> None:
        """Shut the socket down, if it is still this connection's. ZeroMQ notices and closes it."""
        with kernel.opened(self.fd) as sock:
            if sock is not None and kernel.peer_name(sock) == self.peer:
                with contextlib.suppress(OSError):
                    sock.shutdown(sockets.SHUT_RDWR)


def _source(peer: PeerName | None) -> str | None:
    """The address by which connections are counted together; None if it is not TCP.

    For IPv6 this is the network of 64 bits, since one host may use all addresses of it.
    """
    if peer is None:
        return None
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:  # another kind of network
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


class ConnectionTable:
    """The connections of one socket, kept up to date by its events. Create it before binding.

    At most ``connections_max`` are accepted, of which one source address may have a share, and so
    may one identity.
    """

    def __init__(
        self, sock: zmq.Socket[bytes], name: str, connections_max: int, wire: Wire = PLAIN
    ) -> None:
        self.connections: dict[int, Connection] = {}
        # Those that have sent no message, the oldest first. (The first one of a plain dict from
        # which many were taken is found only slowly.)
        self.silent: OrderedDict[int, Connection] = OrderedDict()
        self.count_by_source: Counter[str] = Counter()
        self.count_by_identity: Counter[Identity] = Counter()
        self.listening: list[int] = []  # descriptors on which the socket accepts connections
        self.published = 0  # bytes published to all, if this is the PUB socket
        self.denied: list[tuple[Denied, str | None]] = []  # failed handshakes: why, and from where
        self._failure: Denied | None = None  # of the connection that ends in the next event
        self._connections_max = connections_max
        self._wire = wire
        self._sock = sock
        endpoint = f"inproc://{name}"
        # Without keys those that break off are no strangers: a look whether the port is open.
        sock.monitor(endpoint, _EVENTS | _BROKEN_OFF if wire is CURVE else _EVENTS)
        self.monitor = sock.context.socket(zmq.PAIR)
        # No limit: ZeroMQ's I/O thread would block until there is room for an event.
        self.monitor.setsockopt(zmq.RCVHWM, 0)
        self.monitor.setsockopt(zmq.LINGER, 0)
        self.monitor.connect(endpoint)

    def changes(self, now: float) -> Iterator[tuple[Connection | None, Connection | None]]:
        """Update the table; yields the connection that has ended and the one that has begun.

        Each may be None; both are given when a descriptor is used again.
        """
        for begun, fd in self._events():
            ended = self.connections.pop(fd, None)
            self.silent.pop(fd, None)
            if ended is not None:
                _subtract(self.count_by_source, ended.source)
                _subtract(self.count_by_identity, ended.identity)
            if self._failure is not None:
                # ZeroMQ's I/O thread reports both events of a connection, one after the other.
                source = None if ended is None or begun else ended.source
                self.denied.append((self._failure, source))
                self._failure = None
            connection = None
            if begun:
                with kernel.opened(fd) as sock:
                    peer = kernel.peer_name(sock)
                connection = Connection(fd, peer, self.published, now, self._wire)
                self.connections[fd] = self.silent[fd] = connection
                if connection.source is not None:
                    self.count_by_source[connection.source] += 1
            yield ended, connection

    def identify(self, connection: Connection, identity: Identity | None) -> None:
        """Note to which identity the messages of a connection belong."""
        if identity is connection.identity:
            return
        _subtract(self.count_by_identity, connection.identity)
        connection.identity = identity
        if identity is not None:
            self.count_by_identity[identity] += 1

    def violation(self, connection: Connection) -> str | None:
        """Why a new connection is one too many of its source address, or None."""
        source, share = connection.source, share_of(self._connections_max)
        if source is not None and self.count_by_source[source] > share:
            return f"{share} connections from there are here"
        return None

    def total_violation(self) -> str | None:
        """Why one of the connections has to go, whosever they are, or None."""
        if len(self.connections) > self._connections_max:
            return (
                f"{self._connections_max} connections are here: raise --max-clients, or the limit "
                "of open files (ulimit -n)"
            )
        return None

    def violation_of(self, identity: Identity) -> str | None:
        """Why the newest connection of an identity is one too many, or None."""
        share = share_of(self._connections_max)
        if self.count_by_identity[identity] > share:
            return f"{share} connections of {identity.name} are here"
        return None

    def _events(self) -> Iterator[tuple[bool, int]]:
        """Whether a connection has begun (or else ended), and its descriptor, for each event."""
        with contextlib.suppress(zmq.Again):
            while True:
                message = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
                event, value = message["event"], int(message["value"])
                if event == zmq.EVENT_LISTENING:
                    self.listening.append(value)
                elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    self.denied.append((Denied.UNKNOWN_KEY, None))  # it ends a little later
                elif event & _FAILURES:
                    self._failure = _PROTOCOL_FAILURES.get(value, Denied.MALFORMED)
                elif event == _BROKEN_OFF:
                    self._failure = Denied.BROKEN_OFF
                else:
                    yield event == zmq.EVENT_ACCEPTED, value

    def close(self) -> None:
        if not self.monitor.closed:
            self._sock.disable_monitor()
            self.monitor.close()


_Counted = TypeVar("_Counted")


def _subtract(counts: Counter[_Counted], one: _Counted | None) -> None:
    if one is not None:
        counts[one] -= 1
        if not counts[one]:
            del counts[one]
