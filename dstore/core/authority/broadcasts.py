"""Broadcasts of invalidations to all Locals.

Most Locals hold none of the keys that are deleted, and no deletion waits for them. For
them broadcasts only avoid gaps and long renewals, and notify watchers. So an invalidation that no
deletion waits for is kept for a pause, which grows with the number of Locals, and is broadcast
together with others. Otherwise each deletion would cause work in every Local.

A subscriber cannot be told apart from others, nor cut off by itself. So where some identities may
not see all keys nothing is broadcast: what would be goes to the sessions that watch, to each by
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized

from dstore.core.authority.acknowledgements import PendingDeletion
from dstore.core.authority.effects import NEVER, Alarm, Outbox
from dstore.protocol.messages import Broadcast, Key

PAUSE, PAUSE_PER_LOCAL, PAUSE_MAX = 0.005, 0.0005, 1.0
"""Seconds between broadcasts that no deletion waits for, seconds more for each Local, and the
longest pause. This is about ten times as long as Locals that share few cores take to wake up for
one broadcast.
"""
KEYS_MAX = 1_000
"""A broadcast of this many keys is sent without a pause, so that no broadcast becomes large. If the
log is shorter, its length counts: a Local that renews its lease meanwhile must not have to drop its
whole cache.
"""


class Broadcasts:
    """The invalidations that are kept for the next broadcast.

    All up to the number ``seq`` have been broadcast, or sent to the sessions that watch; all Locals
    may have heard of those up to the number ``heard``, and have been asked to acknowledge those up
    to the number ``awaited``. While ``closing``, broadcasts are sent without a pause.
    """

    def __init__(
        self, epoch: int, log_length: int, recipients: Sized, out: Outbox, alarm: Alarm
    ) -> None:
        self.seq = 0
        self.heard = 0
        self.awaited = 0
        self.closing = False
        self._epoch = epoch
        self._keys_max = min(KEYS_MAX, log_length)
        self._recipients = recipients
        self._out = out
        self._alarm = alarm
        self._keys: list[Key] = []  # of the numbers from seq + 1 on
        self._tokens: list[bytes] = []
        self._due = NEVER  # when they are to be broadcast
        self._next_at = 0.0  # the next broadcast without acknowledgements is not earlier
        self._tell: Callable[[float], None] | None = None  # instead of a broadcast

    def __repr__(self) -> str:
        return f"<Broadcasts seq={self.seq} kept={len(self._keys)}>"

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def wake_at(self) -> float:
        """When what is kept is to be broadcast."""
        return 0.0 if self._keys and self.closing else self._due

    @property
    def pause(self) -> float:
        """Seconds between broadcasts that no deletion waits for."""
        return min(PAUSE + PAUSE_PER_LOCAL * len(self._recipients), PAUSE_MAX)

    def keep(self, started: Iterable[PendingDeletion]) -> None:
        """Keep the invalidations of these deletions, which come in the order of their numbers."""
        for pending in started:
            self._keys.append(pending.key)
            if pending.large:
                self._tokens.append(pending.token)

    @property
    def concealed(self) -> bool:
        """Whether nothing is broadcast any more."""
        return self._tell is not None

    def conceal(self, tell: Callable[[float], None]) -> None:
        """From now on call ``tell`` with the time in place of each broadcast."""
        self._tell = tell

    def schedule(self, now: float) -> None:
        """Schedule a broadcast of what is kept; send it now if there are many keys."""
        if len(self._keys) >= self._keys_max:
            self.send(False, now)
        elif self._due == NEVER:
            self._due = max(self._next_at, now + PAUSE)
            self._alarm.at(self.wake_at)

    def send(self, acknowledge: bool, now: float) -> None:
        """Broadcast what is kept; with ``acknowledge`` all Locals acknowledge it at once."""
        first, keys, tokens = self.seq + 1, self._keys, self._tokens
        self.seq += len(keys)
        if self._tell is not None:
            self._tell(now)
        else:
            self._out.publish(Broadcast(self._epoch, first, keys, acknowledge, tokens))
            self.heard = self.seq
            if acknowledge:
                self.awaited = self.seq
        self._keys, self._tokens = [], []
        self._due = NEVER
        self._next_at = now + self.pause

    def close(self) -> None:
        """Broadcast without a pause from now on."""
        self.closing = True
        self._alarm.at(self.wake_at)
