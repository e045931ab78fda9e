"""How Locals join, renew their leases, acknowledge and leave: HELLO, SYNC, ACK and GOODBYE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dstore.config import share_of
from dstore.core.authority.effects import NEVER, Alarm, Outbox, Refuse
from dstore.core.authority.identity import ANYONE, Identity
from dstore.core.authority.invalidations import Invalidations
from dstore.core.authority.reads import Waits
from dstore.core.authority.sessions import Session, Sessions
from dstore.core.authority.stages import Stages
from dstore.core.authority.writes import Writes
from dstore.protocol.messages import (
    Ack,
    Farewell,
    Goodbye,
    Hello,
    Kind,
    Refusal,
    Route,
    Sync,
    Welcome,
)

MAKE_ROOM_PAUSE = 0.1
"""Seconds between two searches for sessions whose places can be given to other Locals."""


@dataclass(eq=False, repr=False)
class Memberships:
    """The part of :class:`~dstore.core.authority.state.GlobalState` for sessions and leases.

    ``welcome`` is the answer to a HELLO, but for the session, its nonce and the number of the
    newest invalidation. At most ``max_clients`` sessions are admitted, and a share of these from
    one host, and of one identity; ``peer_of`` returns the address of the host of a connection, or
    None if it is not known. ``cluster`` returns the id of Global's cluster. At ``wake_at``
    :meth:`drop_silent` is next due.
    """

    _welcome: Welcome
    _sessions: Sessions
    _invalidations: Invalidations
    _writes: Writes
    _waits: Waits
    _stages: Stages
    _out: Outbox
    _alarm: Alarm
    max_clients: int
    _peer_of: Callable[[Route], str | None]
    _cluster: Callable[[], bytes]
    closing: bool = False
    wake_at: float = NEVER
    _make_room_at: float = 0.0

    # ---- HELLO ----------------------------------------------------------------------------

    def hello(self, route: Route, message: Hello, now: float, identity: Identity = ANYONE) -> None:
        """Open a session, or answer a repeated HELLO again."""
        session = self._sessions.by_nonce(message.nonce, identity)
        if session is None:
            if message.replaces_epoch == self._welcome.epoch:
                replaced = self._sessions.by_secret(message.replaces_secret, identity)
                if replaced is not None:
                    self._end(replaced, now)
            self._check_admission(route, now, identity)
            session = self._open(route, message, now, identity)
        # A repeated HELLO changes neither the lease nor what is acknowledged: its Local counts the
        # lease from when it first sent it.
        session.route = route
        assert session.welcome is not None
        self._out.send(route, session.welcome)

    def _open(self, route: Route, message: Hello, now: float, identity: Identity) -> Session:
        session = self._sessions.open(message, route, now, self._peer_of(route), identity)
        if session.kind is not Kind.WRITER:
            self._invalidations.open(session, now)
        seq = self._invalidations.log.seq
        if session.kind is Kind.OBSERVER:  # the page of its host may be behind what is pending
            seq = self._invalidations.committed
        session.welcome = self._welcome._replace(
            session=session.id,
            nonce=session.nonce,
            seq=seq,
            secret=session.secret,
            quiet=self._writes.quiet_left(now),
            cluster=self._cluster(),
        )
        self.wake_at = min(self.wake_at, self._sessions.lingers_until(session))
        self._alarm.at(self.wake_at)
        return session

    def open_own(self, label: str) -> Session:
        """Open the session of Global's own host: it never lapses, and nothing is sent to it."""
        return self._sessions.open_own(label)

    def end_own(self, session: Session, now: float) -> None:
        """End the session of Global's own host, whose page is void or expires."""
        self._sessions.close(session)
        if self._sessions.holders.sweeping:
            self._alarm.at(now)
        self._waits.end(session)

    def _check_admission(self, route: Route, now: float, identity: Identity) -> None:
        """Raise Refuse if this connection, or its identity, may open no further session."""
        sessions, most = self._sessions, self.max_clients
        if self.closing:
            raise Refuse(Refusal.CLOSING, "Global is shutting down")
        if self._places_taken >= most:
            self._make_room(now)
        if self._places_taken >= most:
            raise Refuse(Refusal.BUSY, f"{most:,} Locals are here, and --max-clients is that")
        peer, share = self._peer_of(route), share_of(most)
        if peer is not None and sessions.of_peer(peer) >= share:
            self._make_room(now)
        if peer is not None and sessions.of_peer(peer) >= share:
            text = f"{share:,} Locals are here from {peer}, as many as one address may have; "
            raise Refuse(Refusal.BUSY, text + f"--max-clients is {most:,}")
        if identity is not ANYONE and sessions.of_identity(identity) >= share:
            self._make_room(now)
        if identity is not ANYONE and sessions.of_identity(identity) >= share:
            text = f"{share:,} Locals of {identity.name!r} are here, as many as one identity may "
            raise Refuse(Refusal.BUSY, text + f"have; --max-clients is {most:,}")
        if sessions.crowded(route):
            text = "this connection has opened several sessions and ended none"
            raise Refuse(Refusal.BUSY, text)

    @property
    def _places_taken(self) -> int:
        """How many sessions are open, that of Global's own host aside."""
        return len(self._sessions) - (self._invalidations.own.session is not None)

    def _make_room(self, now: float) -> None:
        """End the lapsed sessions and idle writers, since other Locals need their places."""
        if now >= self._make_room_at:
            self._make_room_at = now + MAKE_ROOM_PAUSE
            self._writes.expire(now)  # first, or these deletions would count as confirmed
            for session in [each for each in self._sessions if each.lease_end <= now]:
                self._end(session, now)

    # ---- SYNC and ACK ---------------------------------------------------------------------

    def sync(self, session: Session, route: Route, message: Sync, now: float) -> None:
        """Renew a lease, and send the invalidations that the Local has missed."""
        if session.kind is Kind.WRITER:
            raise Refuse(Refusal.BAD_MESSAGE, "a session of the kind WRITER has no lease")
        self._acknowledge(session, route, message.applied, now)
        self._out.counters["syncs"] += 1
        session.forget_outcomes(message.seen)
        self._sessions.renew(session, now)
        self._invalidations.answer(session, message.serial, message.applied, now)
        self._invalidations.watch(session, message.watching)

    def ack(self, session: Session, route: Route, message: Ack, now: float) -> None:
        if session.kind is Kind.WRITER:
            raise Refuse(Refusal.BAD_MESSAGE, "a session of the kind WRITER is not notified")
        self._acknowledge(session, route, message.applied, now)
        self._invalidations.notify_next(session, now)

    def _acknowledge(self, session: Session, route: Route, applied: int, now: float) -> None:
        """Take the acknowledgement in a message, or raise Refuse."""
        notified = self._invalidations.notified(session)
        if applied > notified:
            text = f"invalidation {applied} was not sent to this session, "
            raise Refuse(Refusal.BAD_MESSAGE, text + f"only those up to {notified}")
        session.route = route
        completed = self._invalidations.acknowledge(session, applied, now)
        if completed:
            self._writes.complete(completed, now)

    # ---- the end of a session -------------------------------------------------------------

    def goodbye(
        self, route: Route, message: Goodbye, now: float, identity: Identity = ANYONE
    ) -> None:
        """End a session. The answer is the same if it has ended before."""
        session = self._sessions.by_secret(message.secret, identity)
        if session is not None and message.epoch == self._welcome.epoch:
            self._end(session, now)
        self._out.send(route, Farewell(message.epoch, message.secret))

    def revoke(self, identity: Identity, now: float) -> None:
        """Let the sessions of an identity that was revoked lapse, and drop what they have begun.

        A membership stands until its lease ends, since its Local may answer from its cache until
        then, and deletions have to wait for it. The others have no lease.
        """
        for session in self._sessions.of(identity):
            self._stages.end(session)
            if session.kind is Kind.MEMBER and session.lease_end > now:
                self.wake_at = min(self.wake_at, session.lease_end)
            else:
                self._writes.expire(now)  # first, or these deletions would count as confirmed
                self._end(session, now)
        self._sessions.forget(identity)
        self._alarm.at(self.wake_at)

    def drop_silent(self, now: float) -> None:
        """End the sessions that have lingered for their time without a message."""
        if now >= self.wake_at:
            for session in [
                each for each in self._sessions if self._sessions.lingers_until(each) <= now
            ]:
                self._end(session, now)
            self.wake_at = now + self._sessions.lease if len(self._sessions) else NEVER
            revoked = [each.lease_end for each in self._sessions if each.identity.revoked]
            self.wake_at = min([self.wake_at, *revoked])

    def _end(self, session: Session, now: float) -> None:
        """End a session: its Local's cache is empty, or its lease has run out."""
        self._sessions.close(session)
        if self._sessions.holders.sweeping:
            self._alarm.at(now)
        self._waits.end(session)  # its bit may become another's
        self._stages.end(session)
        if session.kind is Kind.WRITER:
            return
        completed = self._invalidations.close(session, now)
        if completed:
            self._writes.complete(completed, now)
