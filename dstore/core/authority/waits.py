"""Requests that wait at Global until a key is bound, so that Locals need not poll.

A WAIT of a key that is not bound is kept here for the time that it names, and is answered as a GET
would be: when the key is bound, or with "missing" when the time has passed. A Local that wants to
wait for longer asks again. When a session ends, its requests are dropped.

Many requests may wait for one key, whose value may be large. They are answered a few at a time, so
that other messages do not wait until all of them are answered.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from dstore.core.authority.alarm import NEVER, Alarm
from dstore.core.authority.budgets import text_bytes
from dstore.core.authority.sessions import Session
from dstore.protocol.messages import Key, Route, Unwait, Wait

WAIT_BYTES = 1_200
"""The memory that a waiting request takes at most, beside its key."""
TIMEOUT_MAX = 60.0
"""Seconds that a request waits at most."""
ENDS_MIN = 1_000
"""Entries of the heap of ends from which on it is searched for requests that were answered."""


class Waiting(NamedTuple):
    """One waiting request. Its answer goes to ``route``."""

    session: Session
    route: Route
    message: Wait


class Waits:
    """The waiting requests by key, by session, and by when they end."""

    def __init__(self, alarm: Alarm) -> None:
        self._alarm = alarm
        self._by_key: dict[Key, dict[tuple[int, int], Waiting]] = {}
        self._ends: list[tuple[float, int, Key, tuple[int, int]]] = []
        self._of: dict[int, set[tuple[Key, tuple[int, int]]]] = {}  # by session
        self._answerable: deque[Key] = deque()  # keys that have been bound
        self._count = 0
        self._serial = 0

    def __repr__(self) -> str:
        return f"<Waits {self._count} for {len(self._by_key)} keys>"

    def __len__(self) -> int:
        return self._count

    def full(self, session: Session, message: Wait) -> bool:
        """Whether there is no room for this request."""
        if (session.id, message.request) in self._by_key.get(message.key, ()):
            return False
        return not session.waits.admits(_cost(message.key))

    @property
    def wake_at(self) -> float:
        """When requests can next be answered or expire."""
        if self._answerable:
            return 0.0
        return self._ends[0][0] if self._ends else NEVER

    def add(self, session: Session, route: Route, message: Wait, now: float) -> None:
        """Keep a request. The answer goes to where its latest repeat came from."""
        waiting = self._by_key.setdefault(message.key, {})
        name = (session.id, message.request)
        if name not in waiting:
            self._count += 1
            self._serial += 1
            session.waits.take(_cost(message.key))
            self._of.setdefault(session.id, set()).add((message.key, name))
            end = now + min(message.timeout, TIMEOUT_MAX)
            heapq.heappush(self._ends, (end, self._serial, message.key, name))
            self._alarm.at(end)
        waiting[name] = Waiting(session, route, message)

    def bound(self, key: Key) -> None:
        """The key has been bound: the requests that wait for it can be answered."""
        if key in self._by_key:
            self._answerable.append(key)
            self._alarm.at(0.0)

    def answerable(self) -> Key | None:
        """Return a key that has been bound and that requests wait for, or None."""
        while self._answerable:
            key = self._answerable[0]
            if key in self._by_key:
                return key
            self._answerable.popleft()
        return None

    def gone(self) -> None:
        """The key that :meth:`answerable` returned has been deleted: its requests wait on."""
        self._answerable.popleft()

    def take(self, key: Key) -> Waiting:
        """Remove one of the requests that wait for a key, to answer it."""
        return self._take(key, next(iter(self._by_key[key])))

    def drop(self, session: Session, message: Unwait) -> None:
        """Drop a request that its sender has given up. It need not be here."""
        name = (session.id, message.request)
        if name in self._by_key.get(message.key, ()):
            self._take(message.key, name)

    def end(self, session: Session) -> None:
        """Drop the requests of a session that has ended."""
        for key, name in list(self._of.get(session.id, ())):
            self._take(key, name)

    def expire(self, now: float) -> Iterator[Waiting]:
        """Remove and yield the requests whose time has passed."""
        while self._ends and self._ends[0][0] <= now:
            _, _, key, name = heapq.heappop(self._ends)
            if name in self._by_key.get(key, ()):
                yield self._take(key, name)

    def _take(self, key: Key, name: tuple[int, int]) -> Waiting:
        waiting, of_one = self._by_key[key], self._of[name[0]]
        taken = waiting.pop(name)
        taken.session.waits.take(-_cost(key))
        of_one.discard((key, name))
        if not waiting:
            del self._by_key[key]
        if not of_one:
            del self._of[name[0]]
        self._count -= 1
        if len(self._ends) > ENDS_MIN + 2 * self._count:  # most have ended before their time
            self._ends = [each for each in self._ends if each[3] in self._by_key.get(each[2], ())]
            heapq.heapify(self._ends)
        return taken


def _cost(key: Key) -> int:
    return WAIT_BYTES + 2 * text_bytes(key)  # its place among the ends may outlive the request
