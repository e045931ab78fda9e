"""Pending deletions, the sessions that they wait for, and how long they wait.

A deletion waits for the sessions that have been handed the value, for each until it acknowledges
the deletion's number or until its lease, *as it stood when the deletion started*, has run out. A
lease granted later does not count: its Local trusts it only after applying this very deletion.

No step looks at all awaited sessions: with 10,000 of them the acknowledgements of one deletion
would then take longer than the leases. So there is a heap of the moments at which one of them may
expire or need a reminder. A moment is never too late. If it is too early, the look does
nothing and sets a later moment.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sized
from dataclasses import InitVar, dataclass, field

from dstore.core.authority.budgets import Account, text_bytes
from dstore.core.authority.effects import NEVER, Alarm
from dstore.core.authority.sessions import ActiveWrite, Session
from dstore.core.engine import NO_DEADLINE, Bound
from dstore.protocol.messages import Key, Large, Stored

REMIND_AFTER = 0.005
"""Seconds after which a holder that has not acknowledged gets a reminder. The seconds below are
added: a broadcast needs time to go out to all, and Global needs time to take the
acknowledgements of the others. A holder that is reminded too early acknowledges twice, which
delays all others.
"""
REMIND_AFTER_PER_LOCAL, REMIND_AFTER_PER_HOLDER = 20e-6, 40e-6
"""Seconds more for each Local and for each awaited holder: twice what these take (measured)."""
PENDING_BYTES, AWAITED_BYTES = 700, 100
"""What a pending deletion takes at most beside its key, and what each awaited holder takes."""


@dataclass(slots=True, eq=False, repr=False)
class PendingDeletion:
    """A key that is being deleted or replaced. ``old`` is the value that is to be removed.

    ``write`` gets the outcome as its item ``index``; it is None if it was answered before, or if
    Global deletes by itself. ``account`` is that of the session that deletes.
    """

    key: Key
    old: InitVar[Bound]
    write: ActiveWrite | None
    index: int
    account: Account
    token: bytes = field(init=False)
    size: int = field(init=False)
    large: bool = field(init=False)
    replacement: Stored | None = None
    deadline: float = NO_DEADLINE  # of the replacement
    doomed: bool = False  # its first writer does not wait
    submitted: bool = False  # it waits for no holder any more, and is made durable
    seq: int = 0
    awaited: int = 0  # holders that have neither acknowledged nor expired
    confirmed: int = 0
    expired: int = 0
    joined: list[tuple[ActiveWrite, int]] = field(default_factory=list)  # other DELs of the key
    queued: list[Callable[[float], None]] = field(default_factory=list)  # to run once committed
    _cost: int = 0

    def __post_init__(self, old: Bound) -> None:
        self.token = old.token
        self.size = old.size
        self.large = isinstance(old, Stored) and type(old.body) is Large

    def __repr__(self) -> str:
        return f"<PendingDeletion {self.key!r} seq={self.seq} awaited={self.awaited}>"

    def charge(self) -> None:
        """Put the memory that this takes on the account of the session that deletes."""
        self._cost = PENDING_BYTES + text_bytes(self.key) + AWAITED_BYTES * self.awaited
        self.account.take(self._cost)

    def discharge(self) -> None:
        self.account.take(-self._cost)


@dataclass(slots=True, eq=False, repr=False)
class Recipient:
    """A session as a recipient of invalidations.

    Only :class:`~dstore.core.authority.invalidations.Invalidations` and its parts change it.
    """

    session: Session
    acknowledged: int  # it has applied all up to this one
    notified: int  # all up to this one were sent to it, in answers and targeted
    repeated_since: float
    repeated: int = 0  # how many were sent to it once more since ``repeated_since``
    targeted: int = 0  # it was asked, by itself, to acknowledge all up to this one
    watching: bool = False  # it wants to know which deletions are committed
    # The deletions that wait for it, each with the lease end noted when the deletion started.
    # The order is that of their numbers, and of the lease ends as well.
    awaited: deque[tuple[PendingDeletion, float]] = field(default_factory=deque)
    remind_at: float = NEVER
    remind_pause: float = 0.0

    def __repr__(self) -> str:
        return (
            f"<Recipient session no. {self.session.number} acknowledged={self.acknowledged} "
            f"notified={self.notified} awaited={len(self.awaited)}>"
        )


class Acknowledgements:
    """The awaited sessions. ``recipients`` has all sessions, ``lease`` is in seconds."""

    def __init__(self, recipients: Sized, lease: float, alarm: Alarm) -> None:
        self.expired = 0  # holders that counted as expired, over all deletions
        self._recipients = recipients
        self._remind_pause_max = lease / 3
        self._alarm = alarm
        self._awaited: dict[int, Recipient] = {}  # by session id
        self._moments: list[tuple[float, int]] = []  # a heap: when to look at which session
        self._due: dict[int, Recipient] = {}  # those whose moments have come

    def __repr__(self) -> str:
        awaited = [each.session.number for each in self._awaited.values()]
        return f"<Acknowledgements of sessions no. {awaited}>"

    @property
    def wake_at(self) -> float:
        """When the next awaited session expires or needs a reminder, or earlier."""
        if self._due:
            return 0.0
        return self._moments[0][0] if self._moments else NEVER

    def wait_for(self, recipient: Recipient, pending: PendingDeletion, now: float) -> bool:
        """Let a deletion wait for a holder. Returns False if the holder's lease has run out."""
        session = recipient.session
        if session.lease_end <= now:
            self._expire(pending)
            return False
        recipient.awaited.append((pending, session.lease_end))
        pending.awaited += 1
        if session.id not in self._awaited:
            self._awaited[session.id] = recipient
            recipient.remind_pause = self._first_pause()
            recipient.remind_at = now + recipient.remind_pause
            self._look_again(recipient)
        return True

    def _expire(self, pending: PendingDeletion) -> None:
        pending.expired += 1
        self.expired += 1

    def _first_pause(self) -> float:
        """Return the seconds within which the next acknowledgement of a holder should arrive."""
        locals_ = REMIND_AFTER_PER_LOCAL * len(self._recipients)
        return REMIND_AFTER + locals_ + REMIND_AFTER_PER_HOLDER * len(self._awaited)

    def _look_again(self, recipient: Recipient) -> None:
        """Note when it next expires or needs a reminder, whenever that may have become earlier."""
        moment = min(recipient.remind_at, recipient.awaited[0][1])
        heapq.heappush(self._moments, (moment, recipient.session.id))
        self._alarm.at(moment)

    def take(self, recipient: Recipient, applied: int, now: float) -> list[PendingDeletion]:
        """Take an acknowledgement of all invalidations up to ``applied``.

        Returns the deletions that wait for no holder any more.
        """
        recipient.acknowledged = applied
        awaited = recipient.awaited
        if not awaited:
            return []
        pause = self._first_pause()
        earlier = recipient.remind_at > now + pause
        recipient.remind_pause = pause
        recipient.remind_at = now + pause
        completed = []
        while awaited and awaited[0][0].seq <= applied:
            pending, _ = awaited.popleft()
            pending.confirmed += 1
            pending.awaited -= 1
            if not pending.awaited:
                completed.append(pending)
        if not awaited:
            del self._awaited[recipient.session.id]
        elif earlier:
            self._look_again(recipient)
        return completed

    def expire(self, now: float) -> list[PendingDeletion]:
        """Stop waiting for sessions whose leases, as they were noted, have run out.

        Returns the deletions that wait for no holder any more. The caller then calls
        :meth:`reminders`, in this step or in the next tick.
        """
        while self._moments and self._moments[0][0] <= now:
            _, ident = heapq.heappop(self._moments)
            if ident in self._awaited:
                self._due[ident] = self._awaited[ident]
        completed = []
        for recipient in self._due.values():
            awaited = recipient.awaited
            while awaited and awaited[0][1] <= now:
                pending, _ = awaited.popleft()
                self._expire(pending)
                pending.awaited -= 1
                if not pending.awaited:
                    completed.append(pending)
            if not awaited:
                self._awaited.pop(recipient.session.id, None)
        if self._due:
            self._alarm.at(0.0)
        return completed

    def reminders(self, now: float) -> Iterator[Recipient]:
        """Yield the holders whose moments have come and that are to be sent again what they miss.

        The pauses between the reminders to a holder that stays silent grow.
        """
        while self._due:
            _, recipient = self._due.popitem()
            if not recipient.awaited:
                continue
            late = recipient.remind_at <= now
            if late:
                recipient.remind_pause = min(2 * recipient.remind_pause, self._remind_pause_max)
                recipient.remind_at = now + recipient.remind_pause
            self._look_again(recipient)
            if late:
                yield recipient
