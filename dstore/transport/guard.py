"""Limits on what connections may take of Global: how many there are, and how much memory they use.

ZeroMQ bounds the size of one frame and the number of messages in its queues, but not the number of
frames of a message, the bytes of a queue, what a subscriber may subscribe to, or the number of
connections. All of that lies in ZeroMQ's own memory, where this process cannot look; the kernel's
counters show it (:mod:`dstore.transport.connection`).

A connection that exceeds a limit is cut: its socket is shut down, and ZeroMQ then frees all that
belongs to it. An honest Local connects again and repeats its request.

Connections over ipc are counted, and cut only if there are too many. The path of an ipc address
belongs to its user, who can end this process by simpler means. One gap is known: libzmq 4.3.5
aborts the process when it accepts an ipc connection and no descriptor is left. The limit on
connections leaves some, but a flood can use them up between two checks. (Unbinding the path when
few are left does not help: ZeroMQ then ends the connections that it has accepted there.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

import zmq

from dstore.core.authority.identity import ANYONE, Identity
from dstore.transport.connection import (
    PLAIN,
    REPLIES_MAX,
    Connection,
    ConnectionTable,
    Denied,
    Wire,
)
from dstore.transport.kernel import ProcessMemory, descriptor_left

CHECK_PAUSE = 0.1
"""Seconds between two checks."""
CHECK_PAUSE_GROWING = 0.02
"""Seconds between two checks while the memory of the process grows."""
CHECKED_MAX = 200
"""Connections that are looked at in one check, so that it takes about a millisecond. All are
looked at when the memory of the process has grown by ``GROWTH_MAX`` since the last check.
"""
GROWTH_MAX = 32 << 20
"""Bytes by which the memory of the process may grow between two checks."""
UNREAD_TOTAL_MAX = 512 << 20
"""Bytes that ZeroMQ may hold of all connections together; the largest are cut first."""
UNFINISHED_TOTAL_MAX = 320 << 20
"""Bytes of all messages that have not arrived completely, with room for the uploads' chunks."""
INFLATED_TOTAL_MAX = 32 << 20
"""The same bytes when the memory of the process has grown by more than ``INFLATION`` times them:
frames without bytes take ZeroMQ 32 times as much memory as they have on the wire.
"""
INFLATION = 4
"""Bytes of memory for each byte of unfinished messages, as long as their frames are not tiny."""
BASELINE_BYTES = 1 << 20
"""Bytes of unfinished messages that are too few to explain how much memory the process has."""
SILENT_SECONDS = 2.0
"""Seconds that a new connection has for its first message. One that takes longer is cut as soon as
there are too many connections, to make room: it may be there for that alone. A Local sends its
first message as soon as the handshake is complete.
"""
REPLIES_TOTAL_MAX = 512 << 20
"""Bytes of unacknowledged replies of all peers; beyond that, each has only REPLIES_SHARE."""
REPLIES_SHARE = 1 << 20
"""Bytes of unacknowledged replies that a peer may always have."""
BAN_SECONDS = 30.0
"""Seconds for which nothing is accepted from an address that has sent a message of many frames.
A complete one has to be taken out of ZeroMQ frame by frame, which stops Global for nearly a
microsecond each: for up to half a second, with as many as an unfinished message may have. With keys
this concerns the identity that has sent it, since honest clients may be behind the same address.
"""


class Guard:
    """Counts and limits the connections of a ROUTER and a PUB. For the thread that owns these.

    Create it before the sockets are bound. ``warn`` is called, as a logger is, for each cut, and
    ``deny`` for each failed handshake: why, and the source address, if known.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        pub: zmq.Socket[bytes],
        *,
        connections_max: int,
        subscribers_max: int,
        warn: Callable[..., None],
        deny: Callable[[Denied, str | None], None] = lambda why, source: None,
        wire: Wire = PLAIN,
    ) -> None:
        self.cuts = 0
        self.check_at = 0.0  # when the next check is due
        self._rounds = 0  # how often every connection with a complete message has given one
        self._taken_in_round = 0
        self._warn = warn
        self._deny = deny
        self._pub = pub
        self._requests = ConnectionTable(router, "monitor-requests", connections_max, wire)
        self._subscribers = ConnectionTable(pub, "monitor-subscribers", subscribers_max, wire)
        self.by_route: dict[bytes, Connection] = {}  # those from which a message has come
        self.connected = False  # whether there is any connection
        self._banned_until: dict[str | Identity, float] = {}  # by source address, or by identity
        self._replies_full = False
        self._unchecked: list[tuple[ConnectionTable, Connection]] = []
        self._memory = ProcessMemory()
        self._memory_baseline = 0  # its bytes when there were hardly any unfinished messages

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._requests.connections) + len(self._subscribers.connections)

    def listening(self, now: float) -> list[int]:
        """The descriptors on which both sockets listen, once they are bound."""
        self.update(now)
        return [*self._requests.listening, *self._subscribers.listening]

    @property
    def monitors(self) -> list[zmq.Socket[bytes]]:
        """The sockets that have something to read when connections begin, fail or end."""
        return [self._requests.monitor, self._subscribers.monitor]

    # ---- messages -------------------------------------------------------------------------

    def first_message(self, route: bytes, frame: zmq.Frame, now: float) -> Connection | None:
        """Note that a first message has come over ``route``. Returns its connection, if known."""
        try:
            fd = int(frame.get(zmq.SRCFD))
        except zmq.ZMQError:
            return None  # inproc: it comes from this process
        self.update(now)
        connection = self._requests.connections.get(fd)
        if connection is None:
            return None  # the connection has ended meanwhile
        if connection.route is not None:
            # An earlier connection had the same descriptor, and some of its messages were left.
            # One of the two routes belongs to that one, so the counters may mix both.
            del self.by_route[connection.route]
            connection.counters_unsure = True
        self._requests.identify(connection, None)  # whose it was does not matter
        self._requests.silent.pop(fd, None)
        connection.route = route
        self.by_route[route] = connection
        return connection

    def identify(self, connection: Connection, identity: Identity | None) -> None:
        """Note whose connection this is; cut it if it is nobody's, or one too many of these."""
        self._requests.identify(connection, identity)
        reason: str | None = "its key was revoked just now"
        if identity is not None and not identity.revoked:
            reason = self._requests.violation_of(identity)
            if self.bans(identity):
                reason = f"a message of many frames came from {identity.name} just now"
        if reason is not None:
            self.cut(connection, reason)

    def bans(self, identity: Identity) -> bool:
        """Whether what an identity sends is dropped at present."""
        return identity in self._banned_until

    def cut_identity(self, identity: Identity, now: float) -> None:
        """Cut all connections that are, or may be, those of an identity."""
        self.update(now)
        for connection in self._requests.connections.values():
            if connection.identity is identity or connection.identity is None:
                self._end(connection)
        for connection in self._subscribers.connections.values():
            self._end(connection)

    def too_many_frames(
        self, connection: Connection | None, identity: Identity | None, now: float
    ) -> None:
        """Cut a connection whose message has more than two frames; call this until it ends.

        ``identity`` has sent the message; all connections that are known as its are cut. None if
        that is nobody who is admitted.
        """
        if connection is not None:
            self.cut(connection, "its message has more than two frames")
        if identity is ANYONE:
            if connection is not None and connection.source is not None:
                self._banned_until[connection.source] = now + BAN_SECONDS
        elif identity is not None:
            if not self.bans(identity):
                for each in self._requests.connections.values():
                    if each.identity is identity:
                        self.cut(each, f"another one of {identity.name} sent too many frames")
            self._banned_until[identity] = now + BAN_SECONDS
        self.check(now)

    def message_taken(self, connection: Connection, size: int) -> None:
        """A message of ``size`` bytes, heads of frames included, was taken out of the ROUTER."""
        connection.taken += size
        connection.messages += 1
        self._taken_in_round += 1
        if self._taken_in_round > len(self._requests.connections):
            # The ROUTER takes turns: each connection with a complete message has given one.
            self.round_ended()

    def round_ended(self) -> None:
        """Every connection with a complete message has given one, as when the ROUTER is empty."""
        self._taken_in_round = 0
        self._rounds += 1

    def may_reply(self, connection: Connection, size: int, now: float) -> bool:
        """Whether a reply of ``size`` bytes may be sent; if so, it is counted."""
        if connection.replies - connection.acknowledged + size > REPLIES_MAX:
            connection.refresh(self._subscribers.published, now)
            if connection.unacknowledged + size > REPLIES_MAX:
                return False
        if self._replies_full and connection.unacknowledged > REPLIES_SHARE:
            return False
        if connection.replies <= connection.acknowledged:
            connection.progress_at = now  # it had nothing to acknowledge until now
        connection.replies += size
        return not connection.cut

    def published(self, size: int) -> None:
        self._subscribers.published += size

    # ---- checks ---------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Look at connections and cut those that exceed a limit. To be called at ``check_at``."""
        begun = time.monotonic()
        pause = CHECK_PAUSE
        self.update(now)
        self._banned_until = {each: end for each, end in self._banned_until.items() if end > now}
        # A PUB socket takes in subscriptions, and forgets connections, only when it is used.
        self._pub.getsockopt(zmq.EVENTS)
        if self._memory.has_grown(GROWTH_MAX):
            pause = CHECK_PAUSE_GROWING
            self._unchecked = []
            self._check_next(len(self), now)
        else:
            self._check_next(CHECKED_MAX, now)
        if not self._unchecked:  # all have been looked at
            self._check_totals(now)
        if not descriptor_left():
            self._cut_silent()
        end = time.monotonic()
        self.check_at = now + (end - begun) + max(pause, 4 * (end - begun))

    def update(self, now: float) -> None:
        for table in (self._requests, self._subscribers):
            for ended, begun in table.changes(now):
                if ended is not None and ended.route is not None:
                    self.by_route.pop(ended.route, None)
                if begun is not None:
                    self._admit(table, begun, now)
            for denied in table.denied:
                self._deny(*denied)
            table.denied.clear()
        self.connected = len(self) > 0

    def _admit(self, table: ConnectionTable, connection: Connection, now: float) -> None:
        reason = table.violation(connection)
        if reason is None and now < self._banned_until.get(connection.source or "", 0.0):
            reason = "a message of many frames came from there just now"
        if reason is not None:
            self.cut(connection, reason)
            return
        reason = table.total_violation()
        if reason is not None:
            self.cut(self._least_wanted(table, connection, now), reason)

    def _least_wanted(self, table: ConnectionTable, newest: Connection, now: float) -> Connection:
        """Which connection has to go for a new one: one that has long been silent, or the new one.

        Subscribers send no messages, so that they cannot be told apart by that.
        """
        if table is self._requests:
            while table.silent:
                oldest = next(iter(table.silent.values()))
                if now - oldest.begun_at < SILENT_SECONDS:
                    break
                del table.silent[oldest.fd]
                if not oldest.cut:
                    return oldest
        return newest

    def _check_next(self, count: int, now: float) -> None:
        if not self._unchecked:
            for table in (self._requests, self._subscribers):
                self._unchecked += ((table, each) for each in table.connections.values())
        checked, self._unchecked = self._unchecked[:count], self._unchecked[count:]
        published = self._subscribers.published
        for table, connection in checked:
            if connection.cut or not connection.refresh(published, now):
                continue
            if table is self._requests:
                connection.update_unfinished(self._rounds)
                violation = connection.peer_violation(now)
            else:
                violation = connection.subscriber_violation(published)
            if violation is not None:
                self.cut(connection, violation)

    def _check_totals(self, now: float) -> None:
        """Cut the largest of those connections that together exceed a limit."""
        peers = list(self._requests.connections.values())
        unfinished = sum(each.unfinished for each in peers)
        if unfinished < BASELINE_BYTES:
            self._memory_baseline = self._memory.bytes
        inflated = self._memory.bytes - self._memory_baseline > INFLATION * unfinished
        most = INFLATED_TOTAL_MAX if inflated else UNFINISHED_TOTAL_MAX
        self._cut_largest(peers, most, lambda each: each.unfinished, "unfinished messages")
        self._cut_largest(peers, UNREAD_TOTAL_MAX, lambda each: each.unread, "untaken messages")
        replies = sum(each.unacknowledged for each in peers)
        if replies > REPLIES_TOTAL_MAX:  # unless some have been acknowledged meanwhile
            for each in peers:
                each.refresh(self._subscribers.published, now)
            replies = sum(each.unacknowledged for each in peers)
        self._replies_full = replies > REPLIES_TOTAL_MAX

    def _cut_largest(
        self, peers: list[Connection], most: int, size: Callable[[Connection], int], what: str
    ) -> None:
        if sum(max(0, size(each)) for each in peers) > most:
            total = 0
            for each in sorted(peers, key=size):
                total += max(0, size(each))
                if total > most:
                    self.cut(each, f"too many bytes of {what} are here")

    def _cut_silent(self) -> None:
        """No descriptors are left: cut the newest connections that have sent no message."""
        newest = reversed(self._requests.connections.values())
        silent = (each for each in newest if not each.messages and not each.cut)
        for connection in islice(silent, CHECKED_MAX):
            self.cut(connection, "no descriptors are left: raise the limit (ulimit -n)")

    # ---- end ------------------------------------------------------------------------------

    def cut(self, connection: Connection, reason: str) -> None:
        """End a connection. ZeroMQ notices, and frees what belongs to it."""
        if self._end(connection):
            self.cuts += 1
            self._warn("cut the connection of %s: %s", connection.source or "an ipc peer", reason)

    def _end(self, connection: Connection) -> bool:
        if connection.cut:
            return False
        connection.cut = True
        connection.shut_down()
        return True

    def close(self) -> None:
        self._requests.close()
        self._subscribers.close()
        self._memory.close()
