"""Invalidations, from the start of a deletion until all Locals are notified.

:class:`Invalidations` alone owns the log, the pending deletions and the record of what each
session was sent and has acknowledged.

A deletion waits for its holders, so these are notified at once. If they are few, each is sent a
*targeted invalidation* over its control channel: all that it has not acknowledged. No other Local
wakes up. Each holder has one targeted invalidation in flight; deletions that start meanwhile go
with the next one. If most Locals are holders, one *broadcast* notifies all, and all acknowledge.
All other Locals are notified by a later broadcast, or when they renew their leases.

Where some identities may not see all keys (*concealed*) nothing is broadcast. Each holder is sent a
targeted invalidation, however many there are; sessions that watch are sent one where a broadcast
would have notified them. What is sent to a session has the names of the keys that its identity
sees, and an empty one for each other, so that it can go on counting; and the tokens of the large
values among those that are named, since no broadcast has them.

Invalidations are numbered 1, 2, 3 … within one epoch, and a bounded log has the recent ones. A
Local that has applied all of them up to some number asks for the later ones. If the log no longer
reaches back that far, the Local has to drop its whole cache.
"""

from __future__ import annotations

from collections import deque
from itertools import islice, takewhile

from dstore.config import LOG_BYTES_MAX, REPEATED_MAX
from dstore.core.authority.acknowledgements import Acknowledgements, PendingDeletion, Recipient
from dstore.core.authority.broadcasts import Broadcasts
from dstore.core.authority.budgets import text_bytes
from dstore.core.authority.effects import Alarm, Outbox
from dstore.core.authority.host import OwnMembership
from dstore.core.authority.sessions import Session, Sessions
from dstore.protocol.messages import Committed, Key, Kind, Synced

SLOT_BYTES = 10
"""Bytes of a place in the log, beside its key."""
LARGE_BYTES = 200
"""Bytes that the token of a large value takes in the log, with its place there."""


class InvalidationLog:
    """The keys of the last ``length`` invalidations, or of fewer if the keys are long.

    ``seq`` is the number of the newest invalidation, 0 before the first.
    """

    def __init__(self, length: int) -> None:
        self.seq = 0
        self.length = length
        self._keys: deque[Key] = deque()
        self._tokens: deque[tuple[int, Key, bytes]] = deque()  # of the large values, by number
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<InvalidationLog seq={self.seq} reaches={self.reach}>"

    @property
    def reach(self) -> int:
        """The lowest number after which every invalidation is still in the log."""
        return self.seq - len(self._keys)

    def append(self, key: Key, large: bytes | None = None) -> int:
        """Add an invalidation of ``key``. Returns its number.

        ``large`` is the token of its value if that is large.
        """
        self.seq += 1
        self._keys.append(key)
        if large is not None:
            self._tokens.append((self.seq, key, large))
            self._bytes += LARGE_BYTES
        self._bytes += SLOT_BYTES + text_bytes(key)
        while len(self._keys) > self.length or self._bytes > LOG_BYTES_MAX:
            self._bytes -= SLOT_BYTES + text_bytes(self._keys.popleft())
            if self._tokens and self._tokens[0][0] <= self.reach:
                self._tokens.popleft()
                self._bytes -= LARGE_BYTES
        return self.seq

    def since(self, applied: int) -> list[Key] | None:
        """Return the keys of the invalidations in (``applied``, ``seq``].

        Returns None if the log no longer has all of them.
        """
        if applied < self.reach:
            return None
        missed = self.seq - applied
        keys = list(islice(reversed(self._keys), missed))
        keys.reverse()
        return keys

    def large_since(self, applied: int) -> list[tuple[Key, bytes]]:
        """Return keys and tokens of the large values among the invalidations after ``applied``."""
        newer = takewhile(lambda each: each[0] > applied, reversed(self._tokens))
        return [(key, token) for _, key, token in newer][::-1]


class Invalidations:
    """The invalidation log, the pending deletions by key, and the recipients by session.

    Methods that take an acknowledgement, or notice that a lease has run out, return the deletions
    that wait for no holder any more. The caller commits these.
    """

    def __init__(
        self,
        epoch: int,
        log_length: int,
        sessions: Sessions,
        own: OwnMembership,
        out: Outbox,
        alarm: Alarm,
    ) -> None:
        self.own = own
        self.log = InvalidationLog(log_length)
        self.pending: dict[Key, PendingDeletion] = {}  # in the order of their numbers
        self._epoch = epoch
        self._sessions = sessions
        self._out = out
        self._recipients: dict[int, Recipient] = {}
        self.watchers = 0  # sessions that want to know which deletions are committed
        self._started: list[PendingDeletion] = []  # their holders are to be notified
        self._to_notify: dict[int, Recipient] = {}  # the holders that those wait for
        self._committed = 0  # watchers know that all up to this number are committed
        self.acknowledgements = Acknowledgements(self._recipients, sessions.lease, alarm)
        self.broadcasts = Broadcasts(epoch, log_length, self._recipients, out, alarm)

    def __repr__(self) -> str:
        return (
            f"<Invalidations {self.log!r} pending={list(self.pending.values())} "
            f"{self.acknowledgements!r} {self.broadcasts!r}>"
        )

    @property
    def committed(self) -> int:
        """All deletions up to this number are committed."""
        return next(iter(self.pending.values())).seq - 1 if self.pending else self.log.seq

    @property
    def wake_at(self) -> float:
        """When a tick is next due here."""
        return min(self.acknowledgements.wake_at, self.broadcasts.wake_at)

    # ---- sessions -------------------------------------------------------------------------

    def open(self, session: Session, now: float) -> None:
        """Add the recipient of a new session, whose cache is empty: it misses nothing older."""
        self._recipients[session.id] = Recipient(session, self.log.seq, self.log.seq, now)

    def close(self, session: Session, now: float) -> list[PendingDeletion]:
        """Remove a session's recipient. Returns the deletions that wait for no holder any more."""
        recipient = self._recipients.pop(session.id)
        self.watchers -= recipient.watching
        return self.acknowledgements.take(recipient, self.log.seq, now)

    def recipient(self, session: Session) -> Recipient:
        return self._recipients[session.id]

    def notified(self, session: Session) -> int:
        """The highest number of an invalidation that may have reached this session."""
        return max(self._recipients[session.id].notified, self.broadcasts.heard)

    def watch(self, session: Session, watching: bool) -> None:
        """Note whether a session wants to know which deletions are committed."""
        recipient = self._recipients[session.id]
        if watching != recipient.watching:
            recipient.watching = watching
            self.watchers += 1 if watching else -1
            self.announce()

    def conceal(self) -> None:
        """From now on broadcast nothing that names keys. Idempotent."""
        self.broadcasts.conceal(self._tell_watchers)

    def _tell_watchers(self, now: float) -> None:
        """Send the sessions that watch what a broadcast would have told them."""
        for recipient in self._recipients.values():
            watches = recipient.watching or recipient.session.kind is Kind.OBSERVER
            if watches and recipient.notified < self.log.seq:
                # Nothing is repeated: its control channel keeps the order, and what is lost with
                # that is in the answer to the SYNC that follows.
                self._send(recipient, 0, recipient.notified, now)

    # ---- pending deletions ----------------------------------------------------------------

    def start(self, pending: PendingDeletion, now: float) -> None:
        """Phase 1: number the deletion and note which holders it waits for.

        The caller then calls :meth:`notify`.
        """
        pending.seq = self.log.append(pending.key, pending.token if pending.large else None)
        self.pending[pending.key] = pending
        self._started.append(pending)
        for session in self._sessions.holding(pending.key):
            if session is self.own.session:
                pending.confirmed += 1  # see OwnMembership.invalidated, before the commit
                continue
            recipient = self._recipients[session.id]
            if self.acknowledgements.wait_for(recipient, pending, now):
                self._to_notify[session.id] = recipient
        pending.charge()

    def notify(self, now: float) -> list[PendingDeletion]:
        """Notify the holders for the deletions that have started since the last call.

        Returns the deletions that have started and wait for no holder.
        """
        started, self._started = self._started, []
        holders, self._to_notify = self._to_notify, {}
        if not started:
            return started
        self.broadcasts.keep(started)
        # The others have a targeted invalidation in flight; the next one follows its ACK.
        free = [each for each in holders.values() if each.targeted <= each.acknowledged]
        most = 2 * len(holders) > len(self._recipients) or any(map(self._is_behind, free))
        if most and not self.broadcasts.concealed:
            self.broadcasts.send(True, now)
        else:
            for recipient in free:
                self._target(recipient, now)
            self.broadcasts.schedule(now)
        return [pending for pending in started if not pending.awaited]

    def _is_behind(self, recipient: Recipient) -> bool:
        """Whether a targeted invalidation would make it drop its whole cache."""
        return recipient.acknowledged < self.log.reach

    def commit(self, pending: PendingDeletion) -> None:
        """Phase 2: the deletion is no longer pending. The caller then calls :meth:`announce`."""
        del self.pending[pending.key]
        pending.discharge()

    def announce(self) -> None:
        """Broadcast to watchers which of the broadcast deletions are committed."""
        if self.watchers:
            committed = min(self.committed, self.broadcasts.seq)
            if committed > self._committed:
                self._committed = committed
                self._out.publish(Committed(self._epoch, committed))

    # ---- acknowledgements and time --------------------------------------------------------

    def acknowledge(self, session: Session, applied: int, now: float) -> list[PendingDeletion]:
        """Record that a session has applied all invalidations up to ``applied``."""
        recipient = self._recipients[session.id]
        if applied <= recipient.acknowledged:
            return []
        return self.acknowledgements.take(recipient, applied, now)

    def notify_next(self, session: Session, now: float) -> None:
        """After an ACK: send what started while a targeted invalidation was in flight."""
        recipient = self._recipients[session.id]
        if recipient.awaited and recipient.acknowledged >= recipient.targeted:
            newest, _ = recipient.awaited[-1]
            if newest.seq > max(recipient.targeted, self.broadcasts.awaited):
                self._target(recipient, now)

    def remind(self, now: float) -> None:
        """Remind silent holders: the invalidation or its acknowledgement may be lost."""
        for recipient in self.acknowledgements.reminders(now):
            self._out.counters["reminders"] += 1
            self._target(recipient, now)

    def broadcast_due(self, now: float) -> None:
        """Send the broadcast of kept invalidations if it is due."""
        if now >= self.broadcasts.wake_at:
            self.broadcasts.send(False, now)
            self.announce()

    # ---- messages to one session ----------------------------------------------------------

    def answer(self, session: Session, serial: int, applied: int, now: float) -> None:
        """Answer the SYNC with this serial of a session that has applied all up to ``applied``."""
        self._send(self._recipients[session.id], serial, applied, now)

    def _target(self, recipient: Recipient, now: float) -> None:
        """Send a targeted invalidation: all that this session has not acknowledged."""
        self._out.counters["targeted_invalidations"] += 1
        self._send(recipient, 0, recipient.acknowledged, now)

    def _send(self, recipient: Recipient, serial: int, applied: int, now: float) -> None:
        """Send the invalidations after ``applied``. If a deletion waits, ask to acknowledge.

        Nothing is sent to an identity that was revoked: deletions wait until its lease has ended.
        """
        if recipient.session.identity.revoked:
            return
        seq, awaited = self.log.seq, bool(recipient.awaited)
        repeats = self._repeats(recipient, applied, now)
        keys = None if repeats else self.log.since(applied)
        recipient.notified = seq
        if keys is None:
            self._out.counters["flushes"] += 1
        if awaited:
            recipient.targeted = seq
        session, sees = recipient.session, recipient.session.identity.sees
        if keys is not None and session.identity.prefixes:
            keys = [key if sees(key) else "" for key in keys]
        tokens: list[bytes] = []
        if self.broadcasts.concealed and not repeats:
            tokens = [token for key, token in self.log.large_since(applied) if sees(key)]
        envelope = self._epoch, session.id, serial
        message = Synced(*envelope, applied, seq, keys, awaited, self.committed, tokens)
        self._out.send(session.route, message)

    def _repeats(self, recipient: Recipient, applied: int, now: float) -> bool:
        """Whether the same invalidations have been sent to this session too often.

        Messages may be lost, so repeats are normal. But a Local that asks for the same thousands
        of invalidations again and again would keep Global busy with little else. It is asked to
        drop its cache instead, which costs Global nothing.
        """
        again = recipient.notified - applied
        if again <= 0:
            return False
        if now >= recipient.repeated_since + self._sessions.lease:
            recipient.repeated, recipient.repeated_since = 0, now
        recipient.repeated += again
        return recipient.repeated > max(REPEATED_MAX, self.log.length)
