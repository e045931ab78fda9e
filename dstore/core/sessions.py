"""What Global knows about each Local: its session, its lease, what it has acknowledged.

A session lives from HELLO to goodbye. If its lease runs out it has *lapsed*: deletions no longer
wait for it, but it keeps its holder bits for a while, and its Local may come back with a SYNC and
a full cache. Only when it has been silent for the whole linger is it dropped; its Local then has
to say HELLO. Session ids count up and are never used twice in the life of a Global.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dstore.core.holders import Holders, bits_of
from dstore.messages import DelReply, Hello, Key, Route, SetReply, Welcome

if TYPE_CHECKING:
    from dstore.core.calls import Call
    from dstore.core.dying import Dying

LINGER_LEASES = 10
"""A lapsed session is dropped after so many leases without a word."""


class Session:
    """One Local, seen from Global. Times are seconds on Global's clock."""

    def __init__(self, ident: int, bit: int, hello: Hello, route: Route, now: float) -> None:
        self.id = ident
        self.bit = bit
        self.nonce = hello.nonce
        self.label = hello.label
        self.route = route
        self.since = now
        self.open = True
        self.lease_end = now
        self.acked = 0
        self.seen = 0
        self.welcome: Welcome | None = None
        self.outcomes: dict[int, Call | SetReply | DelReply] = {}
        self.awaited: deque[tuple[Dying, float]] = deque()
        self.pushed = 0  # up to which number it has been told by itself, and is to acknowledge
        self.push_at = float("inf")
        self.push_pause = 0.0

    def __repr__(self) -> str:
        return (
            f"<Session {self.id} {self.label!r} acked={self.acked} lease_end={self.lease_end:.3f} "
            f"awaited={len(self.awaited)} outcomes={len(self.outcomes)}>"
        )

    def forget_outcomes(self, seen: int) -> None:
        """The Local no longer waits for writes below ``seen``."""
        if seen > self.seen:
            self.seen = seen
            for write in [write for write in self.outcomes if write < seen]:
                del self.outcomes[write]


class Sessions:
    """All open sessions, by id, by nonce and by holder bit."""

    def __init__(self, lease: float) -> None:
        self.linger = LINGER_LEASES * lease
        self.holders = Holders()
        self._by_id: dict[int, Session] = {}
        self._by_nonce: dict[bytes, Session] = {}
        self._by_bit: dict[int, Session] = {}
        self._mask = 0
        self._last = 0

    def __repr__(self) -> str:
        return f"<Sessions open={len(self)} last={self._last}>"

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_id.values())

    def get(self, ident: int) -> Session | None:
        return self._by_id.get(ident)

    def by_nonce(self, nonce: bytes) -> Session | None:
        return self._by_nonce.get(nonce)

    def open(self, hello: Hello, route: Route, now: float) -> Session:
        """A new session, with no lease yet."""
        self._last += 1
        session = Session(self._last, self.holders.claim(), hello, route, now)
        self._by_id[session.id] = session
        self._by_nonce[session.nonce] = session
        self._by_bit[session.bit] = session
        self._mask |= 1 << session.bit
        return session

    def close(self, session: Session) -> None:
        """End a session: its id is unknown from now on, its bit no longer counts."""
        session.open = False
        session.outcomes.clear()
        del self._by_id[session.id], self._by_nonce[session.nonce], self._by_bit[session.bit]
        self._mask ^= 1 << session.bit
        self.holders.retire(session.bit)

    def holding(self, key: Key) -> list[Session]:
        """The open sessions that have been handed the value of ``key``."""
        return [self._by_bit[bit] for bit in bits_of(self.holders.of(key) & self._mask)]

    def silent(self, now: float) -> list[Session]:
        """Sessions that lapsed so long ago that they are to be dropped."""
        return [each for each in self if each.lease_end + self.linger <= now]
