"""FETCHes of parts that have to be loaded: parked, loaded a few at a time, answered in their order.

A bulk may have a value whose bytes are somewhere else, as in a database. Then ``Bulk.read`` raises
:class:`~dstore.core.engine.Unloaded`: the FETCH is parked, the host is asked to load the part, and
the FETCH is executed once more when it is here. Global goes on with other messages meanwhile.

At most ``PARTS_LOADING_MAX`` parts are being loaded, or wait for Global, at a time; no other bytes
are held. The other requests queue, and sessions take turns, so that one which asks for a lot does
not hold up the others. Within a session parts are loaded in the order in which they were asked for,
since a Local takes only the one that comes next. That is why two requests do not share a load.

A request stands on the account of its session until its load has ended, as in
:mod:`dstore.core.authority.loads`. One that finds no room there is not answered: its sender asks
again when it has heard nothing, and a refusal would end its transfer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from dstore.config import LOAD_BYTES_MIN
from dstore.core.authority.budgets import Account, text_bytes
from dstore.core.authority.effects import Load, Outbox
from dstore.core.authority.identity import Identity
from dstore.core.authority.loads import PARKED_BYTES, Loads
from dstore.core.authority.sessions import Session, Sessions
from dstore.protocol.messages import Fetch, Route

PARTS_LOADING_MAX = 8
"""Parts that are being loaded at a time. A part has ``CHUNK_BYTES_MAX`` bytes at most."""

Name: TypeAlias = tuple[Identity, int, int, bytes, int]
"""Who asks, the session, the number of the transfer, token and offset. A repeat has the same."""


@dataclass(slots=True, eq=False, repr=False)
class ParkedFetch:
    """A FETCH that waits for ``length`` bytes.

    Its answer goes to where its latest repeat came from. ``cost`` is what it takes of ``account``.
    """

    name: Name
    identity: Identity  # that has asked; the session may be another's
    session: Session | None
    route: Route
    message: Fetch
    length: int
    account: Account
    cost: int


class Fetches:
    """The FETCHes that are parked."""

    def __init__(self, loads: Loads, sessions: Sessions, out: Outbox) -> None:
        self._loads = loads
        self._sessions = sessions
        self._out = out
        self._parked: dict[Name, ParkedFetch] = {}
        self._queues: dict[Account, deque[ParkedFetch]] = {}  # whose turn is next comes first
        self._loading: dict[int, ParkedFetch] = {}  # by number of the load

    def __repr__(self) -> str:
        return f"<Fetches parked={len(self)} loading={len(self._loading)}>"

    def __len__(self) -> int:
        return len(self._parked)

    def park(
        self, session: Session | None, route: Route, message: Fetch, length: int, identity: Identity
    ) -> None:
        """Park a request for a part of ``length`` bytes, or note that it is a repeat."""
        name = (identity, *message[1:3], message.token, message.offset)
        known = self._parked.get(name)
        if known is not None:
            known.route = route
            return
        account = self._sessions.loads_account(session, identity)
        cost = max(LOAD_BYTES_MIN, PARKED_BYTES + text_bytes(message.key))
        if not account.admits(cost):
            return
        account.take(cost)
        parked = ParkedFetch(name, identity, session, route, message, length, account, cost)
        self._parked[name] = parked
        self._queues.setdefault(account, deque()).append(parked)
        self._begin()

    def _begin(self) -> None:
        """Have the next parts loaded, as many as may be."""
        while self._queues and len(self._loading) < PARTS_LOADING_MAX:
            turn, queue = next(iter(self._queues.items()))
            parked = queue.popleft()
            del self._queues[turn]
            if queue:
                self._queues[turn] = queue
            number, message = self._loads.fresh_number(), parked.message
            self._loading[number] = parked
            part = message.offset, parked.length
            self._out.load(Load(number, [(message.key, message.token)], part))

    def ended(self, number: int) -> ParkedFetch | None:
        """Forget the request that waits for this load, and return it; None if none does."""
        parked = self._loading.pop(number, None)
        if parked is not None:
            del self._parked[parked.name]
            parked.account.take(-parked.cost)
            self._begin()
        return parked

    def waiting(self) -> Iterator[tuple[Route, Fetch]]:
        """Yield the requests that are parked, each with where its answer would go."""
        for parked in self._parked.values():
            if not parked.identity.revoked:
                yield parked.route, parked.message
