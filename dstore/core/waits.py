"""Requests that wait at Global until a key is bound, so that nobody has to ask again and again.

A WAIT of a key that nobody has bound is kept here for the time that it names, and answered as a
GET would be: at once when the key is bound, else "missing" in the end. A Local that wants to wait
for longer asks again. What its session leaves behind goes at the end of that time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from dstore.messages import Key, Route, Wait

if TYPE_CHECKING:
    from dstore.core.sessions import Session

WAITS_MAX = 100_000
"""Requests that wait at one time; more are refused."""
NEVER = float("inf")


class Waiting(NamedTuple):
    """One request, to be answered over ``route``."""

    session: Session
    route: Route
    message: Wait


class Waits:
    """The requests by key, and by when they end."""

    def __init__(self) -> None:
        self._by_key: dict[Key, dict[tuple[int, int], Waiting]] = {}
        self._ends: list[tuple[float, int, Key, tuple[int, int]]] = []
        self._count = 0
        self._serial = 0

    def __repr__(self) -> str:
        return f"<Waits {self._count} for {len(self._by_key)} keys>"

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether no more are taken. What ended before its time is forgotten only later."""
        return len(self._ends) >= WAITS_MAX

    @property
    def wake_at(self) -> float:
        """When :meth:`expire` is next due."""
        return self._ends[0][0] if self._ends else NEVER

    def add(self, session: Session, route: Route, message: Wait, now: float) -> None:
        """Keep a request. When it comes again it is answered where it came from last."""
        waiting = self._by_key.setdefault(message.key, {})
        name = (session.id, message.request)
        if name not in waiting:
            self._count += 1
            self._serial += 1
            heapq.heappush(self._ends, (now + message.timeout, self._serial, message.key, name))
        waiting[name] = Waiting(session, route, message)

    def bound(self, key: Key) -> list[Waiting]:
        """The key has been bound: those who waited for it."""
        waiting = self._by_key.pop(key, {})
        self._count -= len(waiting)
        return list(waiting.values())

    def expire(self, now: float) -> Iterator[Waiting]:
        """Those whose time is over."""
        while self._ends and self._ends[0][0] <= now:
            _, _, key, name = heapq.heappop(self._ends)
            waiting = self._by_key.get(key, {})
            if name in waiting:
                self._count -= 1
                yield waiting.pop(name)
                if not waiting:
                    del self._by_key[key]
