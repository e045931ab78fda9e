"""Deletions between their two phases: who is waited for, and for how long.

A deletion waits for the sessions that have been handed the value, each until it acknowledges the
deletion's number or its lease runs out *as it stood when the deletion began*. A lease granted
later may be forgotten: its Local trusts it only after applying this very deletion. So each session
has a queue of what waits for it, ordered by number and by end alike.

No step looks at all sessions that are waited for: with 10,000 of them the acknowledgements of one
deletion would then take longer than the leases. So there is a heap of the moments at which one of
them may be due. A moment is never too late; if it is too early, the session is looked at for
nothing and gets a later one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dstore.core.authority.budgets import text_bytes
from dstore.core.authority.log import DeletionLog
from dstore.core.authority.sessions import Session, Sessions
from dstore.protocol.messages import Key, Large, Stored

if TYPE_CHECKING:
    from dstore.core.authority.calls import Call

PUSH_AFTER = 0.005
"""A holder that has not acknowledged after so many seconds is sent what it misses. But not
sooner than the publication can have gone out to all, and the acknowledgements of others have been
taken: who is pushed too early acknowledges twice, and delays all others.
"""
PUSH_AFTER_PER_LOCAL, PUSH_AFTER_PER_HOLDER = 20e-6, 40e-6
"""Seconds more for each Local, and for each holder that is awaited: twice what they take."""
DYING_BYTES, AWAITED_BYTES = 700, 100
"""What a pending deletion takes at most beside its key, and each holder that it waits for."""
NEVER = float("inf")


class PendingDeletion:
    """A key that is being deleted or replaced.

    ``token`` names the value that was found and is to go, ``size`` how many bytes it has,
    ``large`` whether these are apart. ``awaiting`` counts the holders that
    have neither confirmed nor expired. ``joined`` are other DELs of the key, ``queued`` are writes
    that run afresh once it is gone. What it takes, ``cost``, is on the account of its deleter.
    """

    __slots__ = (
        "account",
        "awaiting",
        "call",
        "confirmed",
        "cost",
        "expired",
        "index",
        "joined",
        "key",
        "large",
        "queued",
        "replacement",
        "seq",
        "size",
        "token",
    )

    def __init__(self, key: Key, old: Stored, call: Call, index: int) -> None:
        self.key = key
        self.token = old.token
        self.large = type(old.body) is Large
        self.size = old.size
        self.seq = 0
        self.call: Call | None = call  # who is told in the end, if anybody still waits
        self.index = index
        self.account = call.session.writes
        self.cost = 0
        self.replacement: Stored | None = None
        self.awaiting = 0
        self.confirmed = 0
        self.expired = 0
        self.joined: list[tuple[Call, int]] = []
        self.queued: list[Callable[[float], None]] = []

    def __repr__(self) -> str:
        return f"<PendingDeletion {self.key!r} seq={self.seq} awaiting={self.awaiting}>"


class PendingDeletions:
    """All pending keys. Methods that end a wait yield the deletions that wait for nobody else."""

    def __init__(self, log: DeletionLog, sessions: Sessions, lease: float) -> None:
        self.pending: dict[Key, PendingDeletion] = {}
        self.expired = 0  # leases that had run out, or did, over all deletions
        self._log = log
        self._sessions = sessions
        self._push_pause_max = lease / 3
        self._begun: list[PendingDeletion] = []  # marked, not yet published
        self._called: dict[int, Session] = {}  # the sessions that those wait for
        self._awaited: dict[int, Session] = {}  # the sessions that any wait for
        self._moments: list[tuple[float, int]] = []  # a heap: when to look at which of them
        self._ready: dict[int, Session] = {}  # those to be looked at now

    def __repr__(self) -> str:
        awaited = [session.number for session in self._awaited.values()]
        return f"<PendingDeletions {list(self.pending.values())} awaited={awaited}>"

    @property
    def seq(self) -> int:
        """The number of the newest deletion."""
        return self._log.seq

    @property
    def committed(self) -> int:
        """All deletions up to this number are complete."""
        return next(iter(self.pending.values())).seq - 1 if self.pending else self._log.seq

    def begin(self, pending: PendingDeletion, now: float) -> PendingDeletion:
        """Mark the key, number the deletion, and note whose acknowledgement it needs."""
        pending.seq = self._log.append(pending.key)
        self.pending[pending.key] = pending
        self._begun.append(pending)
        for session in self._sessions.holding(pending.key):
            if session.lease_end > now:
                self._await(session, pending, now)
            else:
                self._expired(pending)
        pending.cost = DYING_BYTES + text_bytes(pending.key) + AWAITED_BYTES * pending.awaiting
        pending.account.take(pending.cost)
        return pending

    def _await(self, session: Session, pending: PendingDeletion, now: float) -> None:
        session.awaited.append((pending, session.lease_end))
        pending.awaiting += 1
        self._called[session.id] = session
        if session.id not in self._awaited:
            self._awaited[session.id] = session
            session.push_pause = self._stall_timeout()
            session.push_at = now + session.push_pause
            self._look_again(session)

    def _stall_timeout(self) -> float:
        """Seconds within which the next acknowledgement of a holder is to be expected."""
        locals_ = PUSH_AFTER_PER_LOCAL * len(self._sessions)
        return PUSH_AFTER + locals_ + PUSH_AFTER_PER_HOLDER * len(self._awaited)

    def _look_again(self, session: Session) -> None:
        """Note when it next expires or is late. To be called whenever that may be sooner."""
        moment = min(session.push_at, session.awaited[0][1])
        heapq.heappush(self._moments, (moment, session.id))

    def _gather(self, now: float) -> None:
        """Those whose moments have come are to be looked at."""
        while self._moments and self._moments[0][0] <= now:
            _, ident = heapq.heappop(self._moments)
            if ident in self._awaited:
                self._ready[ident] = self._awaited[ident]

    def take_begun(self) -> list[PendingDeletion]:
        """What has begun since the last call, in the order of the numbers."""
        begun, self._begun = self._begun, []
        return begun

    def take_called(self) -> list[Session]:
        """The sessions that what has begun since the last call waits for."""
        called, self._called = self._called, {}
        return list(called.values())

    def confirm(self, session: Session, applied: int, now: float) -> Iterator[PendingDeletion]:
        """``session`` has applied all deletions up to ``applied``."""
        stall_timeout = self._stall_timeout()
        sooner = session.push_at > now + stall_timeout
        session.push_pause = stall_timeout
        session.push_at = now + stall_timeout
        while session.awaited and session.awaited[0][0].seq <= applied:
            pending, _ = session.awaited.popleft()
            pending.confirmed += 1
            yield from self._one_less(pending)
        self._rest(session)
        if sooner and session.awaited:
            self._look_again(session)

    def expire(self, now: float) -> Iterator[PendingDeletion]:
        """Leases, as they stood when the deletions began, run out. :meth:`late` is to follow."""
        self._gather(now)
        for session in list(self._ready.values()):
            while session.awaited and session.awaited[0][1] <= now:
                pending, _ = session.awaited.popleft()
                self._expired(pending)
                yield from self._one_less(pending)
            self._rest(session)

    def _expired(self, pending: PendingDeletion) -> None:
        pending.expired += 1
        self.expired += 1

    def end(self, pending: PendingDeletion) -> None:
        """The value is gone."""
        del self.pending[pending.key]
        pending.account.take(-pending.cost)

    def late(self, now: float) -> Iterator[Session]:
        """Holders to be sent what they miss; with growing pauses for those that stay silent."""
        self._gather(now)
        while self._ready:
            _, session = self._ready.popitem()
            if not session.awaited:
                continue
            late = session.push_at <= now
            if late:
                session.push_pause = min(2 * session.push_pause, self._push_pause_max)
                session.push_at = now + session.push_pause
            self._look_again(session)
            if late:
                yield session

    def wake_at(self) -> float:
        """When the next holder expires or is late, or sooner."""
        if self._ready:
            return 0.0
        return self._moments[0][0] if self._moments else NEVER

    def _one_less(self, pending: PendingDeletion) -> Iterator[PendingDeletion]:
        pending.awaiting -= 1
        if not pending.awaiting:
            yield pending

    def _rest(self, session: Session) -> None:
        if not session.awaited:
            self._awaited.pop(session.id, None)
            session.push_at = NEVER
