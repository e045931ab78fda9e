"""Requests for values whose bytes the engine has to load: parked until these are here.

An engine knows keys, tokens, codecs and sizes at once, and so do all writes. The bytes of some
values may be *away*. A GET or WAIT that needs them is parked: the host is asked to load them, and
the request is executed from its beginning, in one step, when they have come. They are laid over the
values that are away, by key and token: what was loaded for one is never answered for another. Who
is a holder, the ``seq``, and whether a value may be cached are all decided in that step, as for any
other GET. So nothing has to be remembered about a reader whose answer is on its way, and whatever
happens to the key meanwhile is as if the request had come after it.

No value is loaded twice at a time: a request that needs bytes which are asked for already waits for
these. That is safe because a key and a token name one value for ever. (A token alone does not: who
knows that of a value which it may not see could bind a value of its own with it.)

A request that is parked has an account, on which its memory and the bytes that it waits for stand
until all of these have ended. So the account is charged also if the session ends first, and a peer
that asks and leaves, again and again, makes the engine load no more than any other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import TypeAlias

from dstore.config import LOAD_BYTES_MIN
from dstore.core.authority.budgets import Account, text_bytes
from dstore.core.authority.effects import NEVER, Alarm, Load, Outbox, Refuse
from dstore.core.authority.identity import ANYONE, Identity
from dstore.core.authority.sessions import Session, Sessions
from dstore.core.engine import Away, Loaded
from dstore.protocol.messages import Buffer, Get, Key, Refusal, Route, Unwait, Wait

LOAD_ROUNDS = 5
"""Times that a request waits for bytes. If after that it needs others, since the value was replaced
each time, it is refused with BUSY.
"""
LOAD_TIMEOUT = 60.0
"""Seconds that a request is parked at most; then it is refused with BUSY."""
PARKED_BYTES, PARKED_KEY_BYTES, WANTED_BYTES = 1_500, 50, 1_000
"""What a parked request takes at most, what each of its keys takes beside its text, and what each
value that it waits for takes beside its body.
"""

Name: TypeAlias = tuple[Identity, type, int, int, tuple[Key, ...]]
"""Who asks, the kind of a request, its session, number and keys. A repeat has the same."""
Place: TypeAlias = tuple[Key, bytes]
"""Key and token of a value."""
Overlay: TypeAlias = dict[Place, Buffer | None]
"""The bytes of values that were away; None for one that could not be loaded."""


@dataclass(slots=True, eq=False, repr=False)
class Parked:
    """A request that waits for bytes. Its answer goes to where its latest repeat came from.

    ``missing`` are the places of the values that are still to come, ``bodies`` what has come.
    """

    name: Name
    identity: Identity  # that has asked; the session may be another's
    session: Session | None
    route: Route
    message: Get | Wait
    since: float
    account: Account
    cost: int = 0
    rounds: int = 0
    withdrawn: bool = False
    missing: dict[Place, None] = field(default_factory=dict)
    bodies: Overlay = field(default_factory=dict)


class Loads:
    """The parked requests, and the values that are being loaded."""

    def __init__(self, sessions: Sessions, out: Outbox, alarm: Alarm) -> None:
        self._sessions = sessions
        self._out = out
        self._alarm = alarm
        self._look_at = NEVER  # when the oldest request may have been parked for too long
        self._number = 0
        self._parked: dict[Name, Parked] = {}  # in the order in which they came
        self._waiting: dict[Place, dict[Parked, None]] = {}  # by what is being loaded
        self._asked: dict[int, list[tuple[Key, Away]]] = {}  # by number of the load
        self._ready: deque[Parked] = deque()  # nothing is missing any more

    def __repr__(self) -> str:
        return (
            f"<Loads parked={len(self)} ready={len(self._ready)} loading={len(self._waiting)} "
            f"in {len(self._asked)}>"
        )

    def __len__(self) -> int:
        return len(self._parked)

    @property
    def wake_at(self) -> float:
        """When requests can next be answered, or may have been parked for too long."""
        return 0.0 if self._ready else self._look_at

    def park(
        self,
        session: Session | None,
        route: Route,
        message: Get | Wait,
        wanted: Iterable[tuple[Key, Away]],
        now: float,
        identity: Identity = ANYONE,
    ) -> None:
        """Park a request that needs the bytes of these values, or note that it is a repeat.

        Raises Refuse if there is no room for it.
        """
        name = (identity, type(message), *message[1:3], tuple(keys_of(message)))
        known = self._parked.get(name)
        if known is not None:
            known.route = route
            return
        account = self._sessions.loads_account(session, identity)
        parked = Parked(name, identity, session, route, message, now, account)
        self._want(parked, list(wanted))
        self._parked[name] = parked
        if self._look_at == NEVER:
            self._look_at = now + LOAD_TIMEOUT
            self._alarm.at(self._look_at)

    def again(self, parked: Parked, wanted: Iterable[tuple[Key, Away]]) -> None:
        """Let a request that was ready wait for further bytes. Raises Refuse if it may not."""
        if parked.rounds >= LOAD_ROUNDS:
            text = "the value is replaced, or has to be loaded again, whenever it was loaded"
            raise Refuse(Refusal.BUSY, text)
        self._want(parked, list(wanted))

    def _want(self, parked: Parked, wanted: list[tuple[Key, Away]]) -> None:
        cost = _cost(parked.name[-1], [away for _, away in wanted], parked.bodies)
        parked.account.take(-parked.cost)
        if not parked.account.admits(cost):
            parked.account.take(parked.cost)
            text = f"too many requests wait for values to be loaded, {parked.account.taken:,} bytes"
            raise Refuse(Refusal.BUSY, f"{text} of them of this session")
        parked.account.take(cost)
        parked.cost = cost
        parked.rounds += 1
        asked = []
        for key, away in wanted:
            place = key, away.token
            if place not in self._waiting:
                self._waiting[place] = {}
                asked.append((key, away))
            self._waiting[place][parked] = None
            parked.missing[place] = None
        if asked:
            number = self.fresh_number()
            self._asked[number] = asked
            self._out.load(Load(number, [(key, away.token) for key, away in asked]))
        if not parked.missing:  # the engine has got them by itself
            self._make_ready(parked)

    def fresh_number(self) -> int:
        """Return the number of the next load."""
        self._number += 1
        return self._number

    def _make_ready(self, parked: Parked) -> None:
        self._ready.append(parked)
        self._alarm.at(0.0)

    def ended(self, number: int, results: Iterable[Loaded]) -> None:
        """Take the results of a load, one for each of its values. Raises KeyError for no load.

        A value failed for which there is no result, or none that has its size.
        """
        wanted = self._asked.pop(number)
        for (key, away), result in zip_longest(wanted, islice(results, len(wanted))):
            place = key, away.token
            body = result if isinstance(result, (bytes, memoryview)) else None
            if body is not None and len(body) != away.size:
                body = None
            self._out.counters["loads"] += 1
            self._out.counters["failed_loads"] += body is None
            for parked in self._waiting.pop(place):
                del parked.missing[place]
                parked.bodies[place] = body
                if not parked.missing:
                    self._make_ready(parked)

    def take(self) -> Parked | None:
        """Return a request for which nothing is missing, or None. :meth:`leave` may follow."""
        return self._ready.popleft() if self._ready else None

    def leave(self, parked: Parked) -> None:
        """Forget a request, which is answered."""
        parked.account.take(-parked.cost)
        del self._parked[parked.name]
        for place in parked.missing:
            del self._waiting[place][parked]
        if not self._parked:
            self._look_at = NEVER

    def drop(self, message: Unwait, identity: Identity = ANYONE) -> None:
        """Note that nobody waits for an answer. The request need not be here."""
        parked = self._parked.get((identity, Wait, *message[1:3], (message.key,)))
        if parked is not None:
            parked.withdrawn = True

    def waiting(self) -> Iterator[tuple[Route, Get | Wait]]:
        """Yield the requests that are parked, each with where its answer would go."""
        for parked in self._parked.values():
            if not (parked.withdrawn or parked.identity.revoked):
                yield parked.route, parked.message

    def expire(self, now: float) -> None:
        """Refuse the requests that have been parked for too long."""
        if now < self._look_at:
            return
        for parked in list(self._parked.values()):
            if now < parked.since + LOAD_TIMEOUT:
                break
            if parked.missing:  # else it is about to be answered
                text = "the engine takes too long to load the value"
                if not parked.identity.revoked:
                    self._out.refuse(parked.route, parked.message, Refusal.BUSY, text)
                self.leave(parked)
        oldest = next(iter(self._parked.values()), None)
        self._look_at = NEVER if oldest is None else oldest.since + LOAD_TIMEOUT


def keys_of(message: Get | Wait) -> list[Key]:
    """Return the keys of which a request wants the values."""
    return [message.key] if isinstance(message, Wait) else message.keys


def _cost(keys: Iterable[Key], wanted: list[Away], bodies: Overlay) -> int:
    """Return the memory that a request takes at most while it is parked, with what it waits for."""
    cost = PARKED_BYTES + sum([PARKED_KEY_BYTES + text_bytes(key) for key in keys])
    cost += sum([WANTED_BYTES + away.size for away in wanted])
    cost += sum([WANTED_BYTES + len(body or b"") for body in bodies.values()])
    return max(LOAD_BYTES_MIN, cost)
