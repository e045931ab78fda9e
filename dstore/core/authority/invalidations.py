"""How Locals are told of deletions: pushed to holders, published to all, or with a renewal.

A deletion waits for its holders, so they are told at once. If they are few, each is pushed what it
has not yet acknowledged, on its control channel; nobody else wakes up. There is one push in flight
to each; what begins meanwhile goes with the next one. If most Locals are holders, one publication
tells them all, and all acknowledge.

Nobody waits for the others. To them publications only spare gaps and long renewals, and tell those
who watch. So what nobody waits for is kept for a pause, which grows with the Locals, and goes into
one publication. Without that, each deletion would cost what all Locals cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from dstore.config import RETOLD_MAX
from dstore.core.authority.log import DeletionLog
from dstore.core.authority.outbox import Outbox
from dstore.core.authority.pending import PendingDeletion, PendingDeletions
from dstore.core.authority.sessions import Session, Sessions
from dstore.protocol.messages import Broadcast, Committed, Key, Synced

PAUSE, PAUSE_PER_LOCAL, PAUSE_MAX = 0.005, 0.0005, 1.0
"""Seconds between publications that nobody waits for, and more for each Local, but no more than the
last: some ten times what it takes Locals to wake up for one if they share few cores.
"""
KEYS_MAX = 1_000
"""So many keys are published together without a pause, so that a publication stays small; or fewer,
if the log has fewer: a Local that renews its lease meanwhile must not have to drop its whole cache.
"""
NEVER = float("inf")


class Invalidations:
    """Deletions from when they begin until all Locals have been told.

    All up to the number ``published`` have been published. When Global is ``closing`` nothing is
    kept for a pause.
    """

    def __init__(
        self,
        epoch: int,
        log: DeletionLog,
        sessions: Sessions,
        deletions: PendingDeletions,
        out: Outbox,
    ) -> None:
        self.published = 0
        self.closing = False
        self._epoch = epoch
        self._log = log
        self._sessions = sessions
        self._deletions = deletions
        self._out = out
        self._asked = 0  # up to which number all have been asked to acknowledge
        self._keys: list[Key] = []  # of the numbers from published + 1 on
        self._tokens: list[bytes] = []
        self._due = NEVER  # when they are to be published
        self._next_at = 0.0  # not sooner than that
        self._told = 0  # up to which number watchers know that deletions are complete

    def __repr__(self) -> str:
        return f"<Publications published={self.published} kept={len(self._keys)}>"

    @property
    def wake_at(self) -> float:
        """When :meth:`publish` is next due."""
        return 0.0 if self._keys and self.closing else self._due

    @property
    def pause(self) -> float:
        """Seconds between publications that nobody waits for."""
        return min(PAUSE + PAUSE_PER_LOCAL * len(self._sessions), PAUSE_MAX)

    def begun(
        self, deletions: Sequence[PendingDeletion], holders: Sequence[Session], now: float
    ) -> None:
        """These have begun, in the order of their numbers; ``holders`` are to acknowledge them."""
        for pending in deletions:
            self._keys.append(pending.key)
            if pending.large:
                self._tokens.append(pending.token)
        waiting = [each for each in holders if each.pushed <= each.acked]
        if 2 * len(holders) > len(self._sessions) or any(map(self._is_behind, waiting)):
            self._publish(True, now)
            return
        for session in waiting:
            self.push(session, now)
        if len(self._keys) >= min(KEYS_MAX, self._log.length):
            self._publish(False, now)
        elif self._due == NEVER:
            self._due = max(self._next_at, now + PAUSE)

    def _is_behind(self, session: Session) -> bool:
        """Whether a push would make it drop its whole cache."""
        return session.acked < self._log.reach

    def push(self, session: Session, now: float) -> None:
        """Tell it what it has not acknowledged. It will."""
        self.tell(session, 0, session.acked, now)

    def heard(self, session: Session) -> int:
        """Up to which number this session may have heard of deletions."""
        return max(session.told, self.published)

    def tell(self, session: Session, serial: int, applied: int, now: float) -> None:
        """Send it what it has missed that has applied all up to that number."""
        keys = None if self._told_too_often(session, applied, now) else self._log.since(applied)
        seq, awaited = self._log.seq, bool(session.awaited)
        session.told = seq
        if keys is None:
            self._out.counters["flushes"] += 1
        if awaited:
            session.pushed = seq
        settled = self._deletions.committed
        message = Synced(self._epoch, session.id, serial, applied, seq, keys, awaited, settled)
        self._out.send(session.route, message)

    def _told_too_often(self, session: Session, applied: int, now: float) -> bool:
        """Whether this is not to be listed for it once more.

        Answers may be lost. But one that asks for the same thousands of deletions again and again
        would have Global do little else; it is told to drop its cache, which costs nothing.
        """
        again = session.told - applied
        if again <= 0:
            return False
        if now >= session.retold_since + self._sessions.lease:
            session.retold, session.retold_since = 0, now
        session.retold += again
        return session.retold > max(RETOLD_MAX, self._log.length)

    def acknowledged(self, session: Session, now: float) -> None:
        """It has acknowledged something: push it what has begun while a push was in flight."""
        if session.awaited and session.acked >= session.pushed:
            newest, _ = session.awaited[-1]
            if newest.seq > max(session.pushed, self._asked):
                self.push(session, now)

    def publish(self, now: float) -> None:
        """Publish what has been kept for long enough."""
        if now >= self.wake_at:
            self._publish(False, now)

    def _publish(self, acknowledge: bool, now: float) -> None:
        first, keys, tokens = self.published + 1, self._keys, self._tokens
        self._out.publish(Broadcast(self._epoch, first, keys, acknowledge, tokens))
        self.published += len(keys)
        if acknowledge:
            self._asked = self.published
        self._keys, self._tokens = [], []
        self._due = NEVER
        self._next_at = now + self.pause

    def settle(self) -> None:
        """Tell those who watch which deletions are complete, of those that they have heard of."""
        settled = min(self._deletions.committed, self.published)
        if settled > self._told:
            self._told = settled
            self._out.publish(Committed(self._epoch, settled))
