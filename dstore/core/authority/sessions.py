"""What Global knows about each Local: its session, its lease, what it has acknowledged.

A session lives from HELLO to goodbye. If its lease runs out it has *lapsed*: deletions no longer
wait for it, but it keeps its holder bits for a while, and its Local may come back with a SYNC and
a full cache. Only when it has been silent for the whole linger is it dropped; its Local then has
to say HELLO. One that has never renewed its lease has little to come back with, and is dropped soon
after that ends: a flood of HELLOs holds no places for long.

The id of a session is a secret that Global shares with its Local: any peer that knows it can
acknowledge, write and say goodbye in its name. So ids are random, and are shown to nobody else. To
people a session has a running number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dstore.config import (
    SESSIONS_PER_ROUTE_MAX,
    WAITS_BYTES_ASSURED,
    WAITS_BYTES_MAX,
    WAITS_BYTES_SHARE,
    WRITES_BYTES_ASSURED,
    WRITES_BYTES_MAX,
    WRITES_BYTES_SHARE,
)
from dstore.core.authority.budgets import Account, Budget
from dstore.core.authority.holders import Holders, bits_of
from dstore.protocol.messages import NO_SESSION, Hello, Key, Route, Welcome

if TYPE_CHECKING:
    from dstore.core.authority.calls import Call
    from dstore.core.authority.pending import PendingDeletion

LINGER_LEASES = 10
"""A lapsed session is dropped after so many leases without a word."""
JOIN_PATIENCE = 5.0
"""Seconds within which the first renewal must come, if a lease is shorter. If that were dropped at
its end, no Local could ever join that is further away than one lease.
"""
OUTCOME_OVERHEAD = 250
"""Bytes that a recorded outcome takes beyond its own: its number, its place."""


class Session:
    """One Local, seen from Global. Times are seconds on Global's clock."""

    def __init__(
        self,
        ident: int,
        number: int,
        bit: int,
        hello: Hello,
        route: Route,
        now: float,
        writes: Account,
        waits: Account,
        peer: str | None = None,
    ) -> None:
        self.id = ident
        self.number = number
        self.bit = bit
        self.opened_by = route
        self.peer = peer  # the address of the host that it is on, if that is known
        self.nonce = hello.nonce
        self.label = hello.label
        self.route = route
        self.since = now
        self.open = True
        self.renewed = False
        self.lease_end = now
        self.acked = 0
        self.seen = 0
        self.welcome: Welcome | None = None
        self.outcomes: dict[int, Call | bytes] = {}
        self.writes = writes  # what its writes take
        self.waits = waits  # what its requests take that wait for a key
        self.told = 0  # up to which number it has been told at least once
        self.retold = 0  # deletions that it has been told again, since a moment
        self.retold_since = now
        self.awaited: deque[tuple[PendingDeletion, float]] = deque()
        self.pushed = 0  # up to which number it has been told by itself, and is to acknowledge
        self.push_at = float("inf")
        self.push_pause = 0.0

    def __repr__(self) -> str:
        return (
            f"<Session no. {self.number} {self.label!r} acked={self.acked} "
            f"lease_end={self.lease_end:.3f} awaited={len(self.awaited)} "
            f"outcomes={len(self.outcomes)}>"
        )

    def forget_outcomes(self, seen: int) -> None:
        """The Local no longer waits for writes below ``seen``."""
        if seen > self.seen:
            self.seen = seen
            for write in [write for write in self.outcomes if write < seen]:
                self._forget(write)

    def forget_all_outcomes(self) -> None:
        """Nobody will ask for them."""
        for write in list(self.outcomes):
            self._forget(write)

    def _forget(self, write: int) -> None:
        outcome = self.outcomes.pop(write)
        if type(outcome) is bytes:  # what is still at work counts until it has ended
            self.writes.take(-outcome_bytes(outcome))


def outcome_bytes(recorded: bytes) -> int:
    """What a recorded outcome takes."""
    return OUTCOME_OVERHEAD + len(recorded)


class Sessions:
    """All open sessions, by id, by nonce and by holder bit.

    ``random63`` gives 63 fresh random bits, which name a session.
    """

    def __init__(self, lease: float, random63: Callable[[], int]) -> None:
        self.lease = lease
        self.linger = LINGER_LEASES * lease
        self._linger_first = min(self.linger, max(0.0, JOIN_PATIENCE - lease))
        self.holders = Holders()
        self._by_id: dict[int, Session] = {}
        self._by_nonce: dict[bytes, Session] = {}
        self._by_bit: dict[int, Session] = {}
        self._by_route: dict[Route, int] = {}  # how many each has opened that are open
        self._by_peer: dict[str | None, int] = {}
        self._mask = 0
        self._number = 0
        self._random63 = random63
        self.writes = Budget(WRITES_BYTES_MAX, WRITES_BYTES_SHARE, WRITES_BYTES_ASSURED)
        self.waits = Budget(WAITS_BYTES_MAX, WAITS_BYTES_SHARE, WAITS_BYTES_ASSURED)

    def __repr__(self) -> str:
        return f"<Sessions open={len(self)} opened={self._number}>"

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_id.values())

    @property
    def state(self) -> tuple[int, int]:
        """Changes whenever a session begins or ends."""
        return self._number, len(self._by_id)

    def get(self, ident: int) -> Session | None:
        return self._by_id.get(ident)

    def by_nonce(self, nonce: bytes) -> Session | None:
        return self._by_nonce.get(nonce)

    def open(self, hello: Hello, route: Route, now: float, peer: str | None = None) -> Session:
        """A new session, with no lease yet."""
        self._number += 1
        session = Session(
            self._fresh_id(),
            self._number,
            self.holders.claim(),
            hello,
            route,
            now,
            Account(self.writes),
            Account(self.waits),
            peer,
        )
        self._by_route[route] = self._by_route.get(route, 0) + 1
        self._by_peer[peer] = self._by_peer.get(peer, 0) + 1
        self._by_id[session.id] = session
        self._by_nonce[session.nonce] = session
        self._by_bit[session.bit] = session
        self._mask |= 1 << session.bit
        return session

    def _fresh_id(self) -> int:
        """One that is nobody's. Of 63 random bits none comes twice in the life of a Global."""
        ident = NO_SESSION
        while ident == NO_SESSION or ident in self._by_id:
            ident = self._random63()
        return ident

    def crowded(self, route: Route) -> bool:
        """Whether this connection has opened as many sessions as it may have."""
        return self._by_route.get(route, 0) >= SESSIONS_PER_ROUTE_MAX

    def of_peer(self, peer: str | None) -> int:
        """How many sessions there are on one host."""
        return self._by_peer.get(peer, 0)

    def close(self, session: Session) -> None:
        """End a session: its id is unknown from now on, its bit no longer counts."""
        session.open = False
        session.forget_all_outcomes()
        self._by_route[session.opened_by] -= 1
        if not self._by_route[session.opened_by]:
            del self._by_route[session.opened_by]
        self._by_peer[session.peer] -= 1
        if not self._by_peer[session.peer]:
            del self._by_peer[session.peer]
        del self._by_id[session.id], self._by_nonce[session.nonce], self._by_bit[session.bit]
        self._mask ^= 1 << session.bit
        self.holders.retire(session.bit)

    def holding(self, key: Key) -> list[Session]:
        """The open sessions that have been handed the value of ``key``."""
        return [self._by_bit[bit] for bit in bits_of(self.holders.of(key) & self._mask)]

    def silent(self, now: float) -> list[Session]:
        """Sessions that lapsed so long ago that they are to be dropped."""
        return [each for each in self if self.end(each) <= now]

    def end(self, session: Session) -> float:
        """When it is dropped if it says nothing more."""
        return session.lease_end + (self.linger if session.renewed else self._linger_first)
