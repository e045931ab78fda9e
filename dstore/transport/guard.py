"""What connections may take of Global: how many there are, and how much each keeps under way.

ZeroMQ bounds the size of one frame and the number of messages in its queues, but not the number of
frames of a message, the bytes of a queue, what a subscriber may subscribe to, or the number of
connections. All of that lies in ZeroMQ's own memory, where this process cannot look. The kernel
tells what ZeroMQ does not: how many bytes each TCP connection has received, and how many of the
bytes that were sent have been acknowledged (``TCP_INFO``). The difference to what was taken out of
the socket, and what was put into it, is what ZeroMQ has in memory.

A connection that exceeds a limit is cut: its socket is shut down, ZeroMQ notices and forgets all
that belongs to it. An honest Local connects again and repeats its request.

Connections over ipc are counted and otherwise left alone. The path of an ipc address belongs to
its user, who can end this process by simpler means.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import struct
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import FileIO
from itertools import islice
from typing import NamedTuple

import zmq
from zmq.utils.monitor import parse_monitor_message

from dstore.config import FRAME_BYTES_MAX, share_of
from dstore.runtime.native import sockets

PAUSE = 0.1
"""Seconds between two turns of the guard."""
PAUSE_GROWING = 0.02
"""The same while the memory of the process grows."""
LOOKS_MAX = 200
"""Connections that are looked at in one turn, so that a turn takes about a millisecond. More are
looked at only when the memory of the process has grown by ``GROWTH_MAX`` since the last turn.
"""
GROWTH_MAX = 32 << 20

UNREAD_MAX = 64 << 20
"""Bytes of one connection that ZeroMQ may have in memory and that were not taken from it yet. An
honest Local has 8 MiB under way, and sends them again after a silence.
"""
UNREAD_TOTAL_MAX = 512 << 20
"""The same of all connections; the largest are cut first."""
UNFINISHED_MAX = FRAME_BYTES_MAX + (64 << 10)
"""Bytes of one message that has not arrived as a whole."""
UNFINISHED_TOTAL_MAX, INFLATED_TOTAL_MAX = 320 << 20, 32 << 20
"""Bytes of all such messages together; beyond that the largest are cut first. There is room for a
chunk of each upload. But frames without bytes take ZeroMQ 32 times as much memory as they have on
the wire: less is permitted when memory has grown by more than ``INFLATION`` times these bytes.
"""
INFLATION = 4
CALM_BYTES = 1 << 20
"""With fewer bytes of unfinished messages than these, memory is as it is for other reasons."""
REPLIES_MAX = 64 << 20
"""Bytes of replies that one peer has not acknowledged; more are dropped, to be asked for again."""
DEAF_SECONDS = 10.0
"""A peer that has replies to read, and has acknowledged nothing for so long, is cut."""
REPLIES_TOTAL_MAX = 512 << 20
"""Bytes of replies that all peers together have not acknowledged. Beyond that a peer gets no more
while it has more than ``REPLIES_SHARE`` to acknowledge.
"""
REPLIES_SHARE = 1 << 20
PUBLISHED_AHEAD_MAX = 16 << 20
"""Bytes that may be published while a subscriber acknowledges nothing."""
SUBSCRIPTION_BYTES_MAX = 192
"""Bytes that a subscriber may send, besides its handshake and its heartbeats. A Local has two
topics of five bytes. ZeroMQ keeps up to 150 bytes for each byte of a topic, and goes through all
topics whenever a subscriber leaves.
"""
HEARTBEAT_BYTES = 16
"""Bytes a second that heartbeats may take; a Local needs 9."""
HEARTBEATS_SAVED_MAX = 16 << 10
"""Bytes of heartbeats that may come at once."""
BAN_SECONDS = 30.0
"""For this time nothing is accepted from an address that has sent a message of many frames. A
complete one has to be taken out of ZeroMQ frame by frame, and stops Global for nearly a microsecond
each: for up to half a second, with as many as an unfinished message may have.
"""
HANDSHAKE_BYTES = 256
"""Bytes that a connection may send before its first message."""

_TCP_INFO = getattr(sockets, "TCP_INFO", None) if sys.platform == "linux" else None
_BYTES = struct.Struct("QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_BYTES_AT = 120
_EVENTS = int(zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)


class Connection:
    """One connection to Global. Counts are bytes since it began, times are seconds."""

    __slots__ = (
        "acked",
        "before",
        "credit",
        "cut",
        "fd",
        "forgiven",
        "group",
        "looked",
        "messages",
        "moved",
        "name",
        "published",
        "received",
        "replies",
        "route",
        "taken",
        "unfinished",
        "unsure",
    )

    def __init__(self, fd: int, peer: tuple[object, ...] | None, now: float) -> None:
        self.fd = fd
        self.name = peer  # as the kernel names the other end; None if it is not TCP
        self.group = _group(peer)
        self.route: bytes | None = None  # once a message has come
        self.cut = False
        self.unsure = False  # what was counted may be another connection's
        self.looked = now
        self.credit = 0.0  # bytes that may yet be taken for heartbeats
        self.forgiven = 0  # bytes of heartbeats
        self.taken = 0  # by us, out of ZeroMQ's socket, with the heads of frames
        self.messages = 0
        self.received = 0  # by ZeroMQ
        self.replies = 0  # given to ZeroMQ
        self.acked = 0  # by the other end
        self.moved = now  # when that was last seen to grow, or had no reason to
        self.published = 0  # to all, when a subscriber was last seen to acknowledge something
        self.unfinished = 0  # of a message that has begun and not ended
        self.before = _Before(-1, 0, 0)

    def __repr__(self) -> str:
        return f"<Connection {self.group or 'ipc'} messages={self.messages} cut={self.cut}>"

    def forgive(self, now: float) -> None:
        """Count as heartbeats what may be heartbeats: a few bytes for each second.

        They may come late, all at once. But what has not been used for long is not saved up, or an
        old connection could have much under way.
        """
        self.credit += HEARTBEAT_BYTES * (now - self.looked)
        self.looked = now
        used = max(0, min(self.unread, int(self.credit)))
        self.forgiven += used
        self.credit = min(self.credit - used, HEARTBEATS_SAVED_MAX)
        if self.unread < -HANDSHAKE_BYTES:  # what waited at an earlier look were no heartbeats
            self.forgiven += self.unread + HANDSHAKE_BYTES

    @property
    def unread(self) -> int:
        """Bytes that ZeroMQ has in memory, at least."""
        return self.received - self.taken - HANDSHAKE_BYTES - self.forgiven

    @property
    def unacknowledged(self) -> int:
        """Bytes of replies that the other end has not acknowledged, about."""
        return max(0, self.replies - self.acked)


class _Before(NamedTuple):
    """What an earlier look at a connection found; see :meth:`Guard._unfinished`."""

    messages: int
    round: int
    unread: int


class Side:
    """The connections of one bound socket, by descriptor, and their monitor."""

    def __init__(self, sock: zmq.Socket[bytes], name: str, connections_max: int) -> None:
        self.most = connections_max
        self.of_group: Counter[str] = Counter()
        self.connections: dict[int, Connection] = {}
        self.listening: list[int] = []  # descriptors
        self.published = 0  # bytes
        self._sock = sock
        endpoint = f"inproc://{name}"
        sock.monitor(endpoint, _EVENTS)
        self._monitor = sock.context.socket(zmq.PAIR)
        # Without a limit: ZeroMQ's I/O thread would wait until there is room for an event.
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(endpoint)

    def events(self) -> Iterator[tuple[bool, int]]:
        """What has happened: whether a connection has begun (or else ended), and its descriptor."""
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


class Guard:
    """Counts and limits the connections of a ROUTER and a PUB. For the thread that owns these.

    Create it before the sockets are bound. Each accepts at most the given number of connections, of
    which one address may have a share.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        pub: zmq.Socket[bytes],
        *,
        connections_max: int,
        subscribers_max: int,
        warn: Callable[..., None],
    ) -> None:
        self.cuts = 0
        self.rounds = 0  # how often the ROUTER was found empty, or all its queues had a turn
        self.due = 0.0  # when the next turn is
        self._warn = warn
        self._pub = pub
        self._requests = Side(router, "monitor-requests", connections_max)
        self._subscribers = Side(pub, "monitor-subscribers", subscribers_max)
        self._by_route: dict[bytes, Connection] = {}
        self._banned: dict[str, float] = {}  # addresses, and until when
        self._replies_full = False
        self._waiting: list[tuple[Side, Connection]] = []  # to be looked at in this round of looks
        self._memory = _Memory()
        self._taken_in_round = 0

    def __repr__(self) -> str:
        return f"<Guard connections={len(self)} cuts={self.cuts}>"

    def __len__(self) -> int:
        return len(self._requests.connections) + len(self._subscribers.connections)

    def listening(self, now: float) -> list[int]:
        """The descriptors on which both sockets listen, once they are bound.

        A forked child inherits them. As long as it has them open the port stays taken, also when
        the parent has closed its own, and nobody answers there. So the child closes its copies.
        """
        self._follow(now)
        return [*self._requests.listening, *self._subscribers.listening]

    # ---- what passes ----------------------------------------------------------------------

    def of(self, route: bytes) -> Connection | None:
        """The connection that has this route, if a message has come from it."""
        return self._by_route.get(route)

    def arrived(self, route: bytes, frame: zmq.Frame, now: float) -> Connection | None:
        """A first message has come over ``route``: its connection. None if it is not known."""
        try:
            fd = int(frame.get(zmq.SRCFD))
        except zmq.ZMQError:
            return None  # inproc: from this process
        self._follow(now)
        connection = self._requests.connections.get(fd)
        if connection is None:
            return None  # it has ended meanwhile
        if connection.route is not None:
            # A connection that has ended had the same descriptor, and messages of it were left.
            # One of the two routes is that one's: what was counted so far is not to be relied on.
            del self._by_route[connection.route]
            connection.unsure = True
        connection.route = route
        self._by_route[route] = connection
        return connection

    def many_frames(self, connection: Connection | None, now: float) -> None:
        """A message goes on after its second frame. To be called now and then until it ends."""
        if connection is not None:
            self.cut(connection, "its message has more than two frames")
            if connection.group is not None:
                self._banned[connection.group] = now + BAN_SECONDS
        self.turn(now)

    def took(self, connection: Connection, size: int) -> None:
        """A message has been taken out of the ROUTER, of ``size`` bytes with its frames' heads."""
        connection.taken += size
        connection.messages += 1
        self._taken_in_round += 1
        if self._taken_in_round > len(self._requests.connections):
            # The ROUTER takes turns: each connection with a whole message has given one.
            self.found_empty()

    def found_empty(self) -> None:
        """Every message that had arrived as a whole has been taken out of the ROUTER."""
        self._taken_in_round = 0
        self.rounds += 1

    def may_reply(self, connection: Connection, size: int, now: float) -> bool:
        """Whether a reply of ``size`` bytes may be sent; if so, it is counted."""
        if connection.unacknowledged + size > REPLIES_MAX:
            self._ask_kernel(connection, now)
            if connection.unacknowledged + size > REPLIES_MAX:
                return False
        if self._replies_full and connection.unacknowledged > REPLIES_SHARE:
            return False
        if connection.replies <= connection.acked:
            connection.moved = now  # it had nothing to acknowledge until now
        connection.replies += size
        return not connection.cut

    def published(self, size: int) -> None:
        """``size`` bytes have been published to all subscribers."""
        self._subscribers.published += size

    # ---- turns ----------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Look at connections, and cut those that exceed a limit. To be called when ``due``."""
        begun = time.monotonic()
        pause = PAUSE
        self._follow(now)
        self._banned = {group: end for group, end in self._banned.items() if end > now}
        # A PUB socket takes in subscriptions, and forgets connections, only when it is used.
        self._pub.getsockopt(zmq.EVENTS)
        if self._memory.grown(GROWTH_MAX):
            pause = PAUSE_GROWING
            self._waiting = []
            self._look(len(self), now)
        else:
            self._look(LOOKS_MAX, now)
        if not self._waiting:  # all have been looked at
            self._bound_totals(now)
        if not _descriptor_left():
            self._shed()
        end = time.monotonic()
        self.due = now + (end - begun) + max(pause, 4 * (end - begun))

    def _follow(self, now: float) -> None:
        """Take in which connections have begun and ended."""
        for side in (self._requests, self._subscribers):
            for begun, fd in side.events():
                former = side.connections.pop(fd, None)
                if former is not None:
                    self._forget(side, former)
                if begun:
                    self._begin(side, Connection(fd, _peer(fd), now), now)

    def _begin(self, side: Side, connection: Connection, now: float) -> None:
        side.connections[connection.fd] = connection
        connection.published = side.published
        if len(side.connections) > side.most:
            self.cut(
                connection,
                f"{side.most} connections are here: raise --max-clients, or the limit of open "
                "files (ulimit -n)",
            )
        group = connection.group
        if group is None:
            return
        side.of_group[group] += 1
        if side.of_group[group] > share_of(side.most):
            self.cut(connection, f"{share_of(side.most)} connections from there are here")
        elif now < self._banned.get(group, 0.0):
            self.cut(connection, "a message of many frames came from there just now")

    def _forget(self, side: Side, connection: Connection) -> None:
        if connection.route is not None:
            self._by_route.pop(connection.route, None)
        if connection.group is not None:
            side.of_group[connection.group] -= 1
            if not side.of_group[connection.group]:
                del side.of_group[connection.group]

    def _look(self, count: int, now: float) -> None:
        """Look at the next connections, in turn."""
        if not self._waiting:
            for side in (self._requests, self._subscribers):
                self._waiting += ((side, each) for each in side.connections.values())
        looked, self._waiting = self._waiting[:count], self._waiting[count:]
        for side, connection in looked:
            if not connection.cut and self._ask_kernel(connection, now):
                if side is self._requests:
                    self._judge_peer(connection, now)
                else:
                    self._judge_subscriber(connection)

    def _judge_peer(self, connection: Connection, now: float) -> None:
        connection.unfinished = self._unfinished(connection)
        if connection.unread > UNREAD_MAX:
            self.cut(connection, f"more than {UNREAD_MAX:,} bytes of its messages are under way")
        elif connection.unfinished > UNFINISHED_MAX:
            self.cut(connection, f"its message has more than {UNFINISHED_MAX:,} bytes")
        elif connection.unacknowledged and now - connection.moved > DEAF_SECONDS:
            self.cut(connection, f"it has not read its replies for {DEAF_SECONDS:g} s")

    def _unfinished(self, connection: Connection) -> int:
        """Bytes of a message that has not arrived as a whole.

        If a connection gave no message between two looks, although each that had a whole one was
        asked for it, then what ZeroMQ had of it at the first look belongs to one message that is
        not complete.
        """
        before, messages = connection.before, connection.messages
        if messages == before.messages and self.rounds <= before.round + 1:
            return connection.unfinished  # not each was asked yet
        connection.before = _Before(messages, self.rounds, connection.unread)
        return before.unread if messages == before.messages else 0

    def _judge_subscriber(self, connection: Connection) -> None:
        if connection.unread > SUBSCRIPTION_BYTES_MAX:
            self.cut(connection, f"it subscribes with more than {SUBSCRIPTION_BYTES_MAX:,} bytes")
        elif self._subscribers.published - connection.published > PUBLISHED_AHEAD_MAX:
            self.cut(connection, "it does not read what is published")

    def _ask_kernel(self, connection: Connection, now: float) -> bool:
        """Bring its numbers up to date. False if it is not there any more, or not TCP."""
        if connection.name is None or _TCP_INFO is None:
            return False
        with _opened(connection.fd) as sock:
            if sock is None or _name_of(sock) != connection.name:
                return False
            try:
                info = sock.getsockopt(sockets.IPPROTO_TCP, _TCP_INFO, _BYTES_AT + _BYTES.size)
                waiting = _in_queue(sock)
            except OSError:
                return False
            if len(info) < _BYTES_AT + _BYTES.size:  # pragma: no cover - Linux before 4.1
                return False
            acked, received = _BYTES.unpack_from(info, _BYTES_AT)
            connection.received = received - waiting
        if acked != connection.acked:
            connection.acked, connection.moved = acked, now
            connection.published = self._subscribers.published
        connection.forgive(now)
        if connection.unsure:
            connection.unsure = False
            connection.taken, connection.replies = connection.received, acked
        return True

    def _bound_totals(self, now: float) -> None:
        """Cut the largest of those that together exceed a limit."""
        peers = list(self._requests.connections.values())
        unfinished = sum(each.unfinished for each in peers)
        if unfinished < CALM_BYTES:
            self._memory.calm()
        most = UNFINISHED_TOTAL_MAX
        if self._memory.since_calm > INFLATION * unfinished:
            most = INFLATED_TOTAL_MAX
        self._cut_largest(peers, most, lambda each: each.unfinished, "unfinished messages")
        self._cut_largest(peers, UNREAD_TOTAL_MAX, lambda each: each.unread, "untaken messages")
        replies = sum(each.unacknowledged for each in peers)
        if replies > REPLIES_TOTAL_MAX:  # or those that have been acknowledged meanwhile
            for each in peers:
                self._ask_kernel(each, now)
            replies = sum(each.unacknowledged for each in peers)
        self._replies_full = replies > REPLIES_TOTAL_MAX

    def _cut_largest(
        self,
        peers: list[Connection],
        most: int,
        size: Callable[[Connection], int],
        what: str,
    ) -> None:
        if sum(max(0, size(each)) for each in peers) > most:
            total = 0
            for each in sorted(peers, key=size):
                total += max(0, size(each))
                if total > most:
                    self.cut(each, f"too many bytes of {what} are here")

    def _shed(self) -> None:
        """There are no descriptors left: cut the newest connections that have said nothing."""
        newest = reversed(self._requests.connections.values())
        silent = (each for each in newest if not each.messages and not each.cut)
        for connection in islice(silent, LOOKS_MAX):
            self.cut(connection, "no descriptors are left: raise the limit (ulimit -n)")

    # ---- the end --------------------------------------------------------------------------

    def cut(self, connection: Connection, reason: str) -> None:
        """End a connection. ZeroMQ notices, and forgets what belongs to it."""
        if connection.cut:
            return
        connection.cut = True
        self.cuts += 1
        self._warn("cut the connection of %s: %s", connection.group or "an ipc peer", reason)
        with _opened(connection.fd) as sock:
            if sock is not None and _name_of(sock) == connection.name:
                with contextlib.suppress(OSError):
                    sock.shutdown(sockets.SHUT_RDWR)

    def close(self) -> None:
        self._requests.close()
        self._subscribers.close()
        self._memory.close()


class _Memory:
    """How much memory this process has, where the system tells."""

    def __init__(self) -> None:
        self._bytes = self._calm = 0
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._file: FileIO | None = None
        try:
            self._file = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115
        except OSError:  # pragma: no cover - not Linux
            pass

    @property
    def since_calm(self) -> int:
        """Bytes by which it has grown since :meth:`calm`, as of the last look."""
        return self._bytes - self._calm

    def calm(self) -> None:
        """Nothing remarkable is here."""
        self._calm = self._bytes

    def grown(self, by: int) -> bool:
        """Whether it has grown by more than ``by`` bytes since the last call."""
        if self._file is None:  # pragma: no cover - not Linux
            return False
        self._file.seek(0)
        former, self._bytes = self._bytes, int(self._file.read(256).split()[1]) * self._page
        return self._bytes > former + by

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[sockets.socket | None]:
    """ZeroMQ's socket with this descriptor, or what has it by now, or None.

    Under a descriptor of its own, for a moment, since ZeroMQ may close the other one at any time.
    If there is none left, under that one.
    """
    try:
        own = os.dup(fd)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            yield None
            return
        own = fd
    try:
        # Names of both families fit into what Python reserves for one of IPv6.
        family = sockets.AF_INET6 if sockets.has_ipv6 else sockets.AF_INET
        sock = sockets.socket(family, sockets.SOCK_STREAM, 0, own)
    except OSError:  # it is no socket any more
        if own != fd:
            os.close(own)
        yield None
        return
    try:
        yield sock
    finally:
        if own == fd:
            sock.detach()
        else:
            sock.close()


def _peer(fd: int) -> tuple[object, ...] | None:
    with _opened(fd) as sock:
        return None if sock is None else _name_of(sock)


def _name_of(sock: sockets.socket) -> tuple[object, ...] | None:
    """The other end of a TCP connection, as the kernel names it. None for anything else."""
    try:
        name = sock.getpeername()
    except OSError:
        return None
    return name if isinstance(name, tuple) else None


def _group(peer: tuple[object, ...] | None) -> str | None:
    """Those that count as one peer: an address, or an IPv6 network, of which a host may use all."""
    if peer is None:
        return None
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:  # of another kind of network
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _in_queue(sock: sockets.socket) -> int:
    """Bytes that the kernel has received and ZeroMQ has not taken yet."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


def _descriptor_left() -> bool:
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True
