"""Deadlines: when keys expire, and which of them are due.

A deadline is a time of the wall clock, since it has to outlive this process. The clock that decides
is the highest time that the wall clock has shown here: it never goes back. So if the wall clock is
set back, keys live longer by that much, and no key that has expired comes back to life. If it is
set forward, keys expire earlier. That is noticed within :data:`LOOK_EVERY`.

The record of a key has its deadline and the token of its value. A record that is no longer that of
its key says nothing: the value or its deadline is another by now, and an expiry that had to wait
until then does not take place. The records that wait are kept in order; each operation on one takes
a few microseconds, however many there are, and none takes longer to tidy up. Nothing happens until
the first of them is due.

Mass expiry is paced, so that other messages have their turn, holders keep up, and no Local has to
drop its cache because the invalidation log has moved on. A step takes :data:`STEP_KEYS` records,
and the next one comes after :data:`STEP_PAUSE`, or after :data:`SLOW_PAUSE` while
:data:`PENDING_MANY` expiries wait for their holders: one of these may have died, and must not stop
the others. At most half of the log is pending, and at most half of it is used in the time in which
Locals renew their leases, unless keys are late by :data:`LATE`: then memory matters more.

In a partition that is quiet no expiry begins before its end, so that those of others do not wait:
nothing of it could be removed, and it would count among the pending ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeAlias

from sortedcontainers import SortedList

from dstore.core.authority.budgets import text_bytes
from dstore.core.authority.effects import NEVER, Alarm
from dstore.core.authority.partitions import Partitions
from dstore.core.engine import NO_DEADLINE
from dstore.protocol.messages import Key

Deadline: TypeAlias = tuple[float, Key, bytes]
"""A record: the deadline in seconds since 1970, the key, and the token of the value that goes then.

A plain tuple: Python's garbage collector does not have to look at a million of them each time.
"""
DEADLINE_BYTES = 350
"""What a record takes at most, beside its key: the tuple, its places in order and by key."""
STEP_KEYS = 25
"""Keys whose expiry begins in one step of Global."""
STEP_PAUSE, SLOW_PAUSE = 0.0005, 0.02
"""Seconds between two such steps; and if many expiries are pending."""
PENDING_MANY = 200
"""Expiries that have begun and not ended from which on further ones begin slowly."""
RETRY_PAUSE = 1.0
"""Seconds after which an expiry is tried again whose removal the engine or the disk has refused."""
LOOK_EVERY = 1.0
"""Seconds between two looks at the wall clock while a key has a deadline: the clock may be set."""
LATE = 5.0
"""Seconds, or one lease if that is shorter, by which keys may be late for the sake of the log."""
SORT_KEYS = 1_000
"""Records of quiet partitions that are put aside, or back, in one step."""
WINDOW_LEASES = 1 / 3
"""The part of a lease in which expiries use at most half of the log: Locals renew as often."""


def deadline_bytes(key: Key) -> int:
    """Return the bytes that the record of a key takes at most."""
    return DEADLINE_BYTES + text_bytes(key)


class Deadlines:
    """The deadlines by key, and in order. ``wall`` returns the time of the wall clock.

    ``lease`` is in seconds. ``bytes`` is what all records take. ``pending`` is the number of
    expiries that have begun and not ended, at most ``pending_max``. At ``wake_at``, in seconds of
    Global's clock, :meth:`due` is to be called.
    """

    def __init__(
        self,
        wall: Callable[[], float],
        log_length: int,
        lease: float,
        alarm: Alarm,
        partitions: Partitions | None = None,
    ) -> None:
        self.bytes = 0
        self.pending = 0
        self.wake_at = NEVER
        self._wall = wall
        self._clock = 0.0  # the highest time that the wall clock has shown
        self._records: dict[Key, Deadline] = {}
        self._waiting: SortedList[Deadline] = SortedList()
        self._failed: dict[Key, tuple[float, Deadline]] = {}  # with the time of the next try
        self._lease = lease
        self._late_after = min(LATE, lease)
        self._per_window = self.pending_max = max(STEP_KEYS, log_length // 2)
        self._window_end = 0.0
        self._left = 0  # how many expiries may begin in this window
        self._alarm = alarm
        self._partitions = partitions
        self._quiet: dict[float, list[Deadline]] = {}  # what is put aside, by the end of its quiet

    def __repr__(self) -> str:
        return f"<Deadlines {len(self)} waiting={len(self._waiting)} pending={self.pending}>"

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> Iterator[tuple[Key, bytes, float]]:
        """Return all records, as :meth:`load` takes them."""
        return ((key, token, at) for at, key, token in self._records.values())

    # ---- the record of a key --------------------------------------------------------------

    def clock(self) -> float:
        """Return the time, in seconds since 1970, on a clock that never goes back."""
        self._clock = max(self._clock, self._wall())
        return self._clock

    def after(self, ttl: float | None) -> float:
        """Return the deadline of a value that is to live for ``ttl`` seconds; None: for ever."""
        return NO_DEADLINE if ttl is None else self.clock() + ttl

    def of(self, key: Key) -> float:
        """Return the deadline of a key, which is NO_DEADLINE if it does not expire."""
        record = self._records.get(key)
        return NO_DEADLINE if record is None else record[0]

    def left(self, key: Key) -> float | None:
        """Return the seconds until a key expires, from 0 on; None if it does not expire."""
        deadline = self.of(key)
        return None if deadline == NO_DEADLINE else max(0.0, deadline - self.clock())

    def passed(self, key: Key) -> Deadline | None:
        """Return the record of a key whose deadline has passed; None for any other key."""
        record = self._records.get(key)
        return record if record is not None and record[0] <= self.clock() else None

    def holds(self, record: Deadline) -> bool:
        """Whether this is still the record of its key."""
        return self._records.get(record[1]) is record

    def set(
        self, key: Key, token: bytes, deadline: float, now: float, *, begun: bool = False
    ) -> None:
        """Note the deadline of the value that a key has now; NO_DEADLINE: it has none.

        If its deletion has ``begun``, the record is due only if that fails.
        """
        self.drop(key)
        if deadline == NO_DEADLINE:
            return
        record = self._records[key] = (deadline, key, token)
        self.bytes += deadline_bytes(key)
        if not begun:
            self._waiting.add(record)
            self._look_at(now + min(LOOK_EVERY, max(0.0, deadline - self.clock())))

    def load(self, deadlines: Iterable[tuple[Key, bytes, float]], now: float) -> None:
        """Note the deadlines of many keys, which have none yet, with the tokens of their values."""
        records = [(at, key, token) for key, token, at in deadlines if at != NO_DEADLINE]
        self._records.update((record[1], record) for record in records)
        self._waiting.update(records)
        self.bytes += sum(deadline_bytes(key) for _, key, _ in records)
        self._look_at(now)

    def drop(self, key: Key) -> None:
        """Forget the deadline of a key, if it has one: its value is gone, or stays for ever."""
        record = self._records.pop(key, None)
        if record is not None:
            self._waiting.discard(record)
            self._failed.pop(key, None)
            self.bytes -= deadline_bytes(key)

    def failed(self, key: Key, now: float) -> None:
        """The value of a key could not be removed. If its deadline has passed, try again later."""
        record = self.passed(key)
        if record is not None:
            self._waiting.discard(record)
            self._failed.pop(key, None)  # what fails last is tried again last
            self._failed[key] = (now + RETRY_PAUSE, record)
            self._look_at(now + RETRY_PAUSE)

    def _look_at(self, moment: float) -> None:
        self.wake_at = min(self.wake_at, moment)
        self._alarm.at(self.wake_at)

    def look(self, now: float) -> None:
        """Look at ``now`` for what is due: nothing was begun for a while."""
        if self._records:
            self._look_at(now)

    # ---- what is due ----------------------------------------------------------------------

    def due(self, now: float) -> deque[Deadline]:
        """Return some of the records whose deadlines have passed; each comes once.

        The caller begins their expiry. At its end :meth:`drop` or :meth:`failed` is called.
        """
        for key, (moment, record) in list(islice(self._failed.items(), STEP_KEYS)):
            if moment > now:
                break
            del self._failed[key]
            self._waiting.add(record)
        clock, waiting = self.clock(), self._waiting
        if self._quiet:
            self._take_back(now)
        room, looks = self._room(now, clock), SORT_KEYS
        due: deque[Deadline] = deque()
        while waiting and waiting[0][0] <= clock and len(due) < room and looks:
            looks -= 1
            record = waiting.pop(0)
            if self._partitions is None or not self._put_aside(self._partitions, record, now):
                due.append(record)
        self._left -= len(due)
        self.wake_at = self._next(now, clock)
        return due

    def _put_aside(self, partitions: Partitions, record: Deadline, now: float) -> bool:
        """Put a record aside while its partition is quiet. Returns whether it is."""
        until = partitions.quiet_until(record[1])
        if until <= now:
            return False
        self._quiet.setdefault(until, []).append(record)
        return True

    def _take_back(self, now: float) -> None:
        """Let the expiries begin whose partitions are not quiet any more."""
        room = SORT_KEYS
        for until in [each for each in self._quiet if each <= now]:
            records = self._quiet[until]
            while records and room:
                room -= 1
                record = records.pop()
                if self.holds(record):
                    self._waiting.add(record)
            if not records:
                del self._quiet[until]

    def _room(self, now: float, clock: float) -> int:
        """Return how many expiries may begin in this step."""
        if now >= self._window_end:
            self._window_end = now + WINDOW_LEASES * self._lease
            self._left = self._per_window
        left = STEP_KEYS if self._late(clock) else max(0, self._left)
        return min(STEP_KEYS, left, max(0, self.pending_max - self.pending))

    def _late(self, clock: float) -> bool:
        """Whether a key should have begun to expire a while ago."""
        return bool(self._waiting) and self._waiting[0][0] + self._late_after <= clock

    def _next(self, now: float, clock: float) -> float:
        """Return when the next look is due."""
        moment = NEVER
        if self._waiting:
            left = self._waiting[0][0] - clock
            if left > 0:
                moment = now + min(left, LOOK_EVERY)
            elif self._left > 0 or self._late(clock):
                moment = now + (STEP_PAUSE if self.pending < PENDING_MANY else SLOW_PAUSE)
            else:  # the window is used up, until the first of them is late
                moment = min(self._window_end, now + left + self._late_after)
        if self._quiet:
            moment = min(moment, max(now + STEP_PAUSE, min(self._quiet)))
        if self._failed:
            moment = min(moment, next(iter(self._failed.values()))[0])
        return moment
