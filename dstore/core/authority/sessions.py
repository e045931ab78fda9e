"""The sessions: what Global knows about each Local that has joined.

A session lives from HELLO to GOODBYE. If its lease runs out it has *lapsed*: deletions no longer
wait for it, but it keeps its holder bits for a while, and its Local may come back with a SYNC and
a full cache. Only when it has been silent for the whole linger is it dropped; its Local then has
to say HELLO. A session that has never renewed its lease has hardly any cache to keep and
is dropped soon after its lease ends, so that a flood of HELLOs does not occupy places for long.

A session has two names, both random. Requests name it by its *id*, which several processes of a
host may know. Its *secret* is known to the owner alone: it is needed to renew the lease, to
acknowledge, to say GOODBYE and to put another session in its place. Logs and metrics name a session
by a running number.

A session belongs to the identity that opened it. No other identity can write, upload, renew,
acknowledge or end in its name, even if it knows the names; but any may read in its name, since the
processes that share a membership may have other identities than its owner. So the session becomes a
holder only of keys that its own identity sees: else its Local would not be told which key was
deleted, and would keep the value. When an identity is revoked its sessions lapse: nothing is taken
from them or sent to them any more, and each ends when its lease does.

Only a session of the kind MEMBER has a holder bit. A WRITER has the outcomes of the writes of one
process, and ends when that is silent for longer than it would repeat a write. An OBSERVER is
notified of invalidations, and no deletion waits for it. The membership of Global's own host has no
secret: no message renews or ends it.

The outcomes of a write are kept for as long as its Local may repeat it, packed into few bytes: a
reply of 10,000 items takes 2 MB as Python objects and 210 KB packed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass, field
from itertools import islice
from struct import Struct
from typing import Any, cast

from dstore.config import (
    BATCH_BYTES_MAX,
    LOADS_BYTES_ASSURED,
    LOADS_BYTES_MAX,
    LOADS_BYTES_SHARE,
    SESSIONS_PER_ROUTE_MAX,
    WAITS_BYTES_ASSURED,
    WAITS_BYTES_MAX,
    WAITS_BYTES_SHARE,
    WRITES_BYTES_ASSURED,
    WRITES_BYTES_MAX,
    WRITES_BYTES_SHARE,
)
from dstore.core.authority.budgets import Account, Budget, Group
from dstore.core.authority.holders import Holders, bits_of
from dstore.core.authority.identity import ANYONE, Identity, Role
from dstore.protocol.messages import (
    NO_SESSION,
    DelReply,
    DelResult,
    DelStatus,
    ExpireReply,
    ExpireStatus,
    Hello,
    Key,
    Kind,
    Route,
    SetReply,
    SetResult,
    SetStatus,
    Welcome,
    WriteReply,
    WriteResult,
)

LINGER_LEASES = 10
"""A lapsed session is dropped after this many leases without a message."""
JOIN_TIMEOUT = 5.0
"""Seconds within which the first renewal must come, if a lease is shorter. If a new session were
dropped at the end of its lease, a Local that is further away than one lease could never join.
"""
WRITE_BYTES, WRITE_ITEM_BYTES = 600, 900
"""What an active write takes at most, and what each of its items takes beside its key and value:
its outcome, its place in a queue, the names of its value.
"""
WRITER_IDLE, WRITER_SILENCE = 10.0, 60.0
"""Seconds without a write or an upload after which the place of a WRITER may be given to another
Local, and seconds more, or ten leases if that is longer, after which it is dropped. A Local repeats
a write that is not answered at least every 4 seconds.
"""
NO_BIT = -1
"""Stands for the holder bit of a session that is no holder."""
_SET, _DEL, _EXPIRE = b"S", b"D", b"E"
NOT_EXECUTED = b"N"
"""The recorded outcome of a write that was refused with NOT_MINE: no copy of it is ever executed,
so that its Local may write to another Global.
"""
_OUTCOME = Struct(">BQIII")
"""Status, seq, confirmed, expired, pending."""
OUTCOME_OVERHEAD = 250
"""Bytes of a recorded outcome beside its packed form: its number and its dictionary slot."""
LOCALS_SHOWN = 1_000
"""The metrics name this many Locals, the oldest ones."""
SHOWN_PER_LOCAL = 20e-6
"""Seconds for each Local within which the metrics of all Locals are not gathered again. So a peer
that asks for them all the time takes no more than a few percent of Global's time.
"""


@dataclass(eq=False, repr=False)
class Session:
    """One Local, seen from Global. Times are seconds on Global's clock.

    What the session has acknowledged is in its
    :class:`~dstore.core.authority.acknowledgements.Recipient`. A WRITER has no lease: when its
    ``lease_end`` has passed, it has been silent for a while.
    """

    id: int
    secret: int
    kind: Kind
    number: int
    bit: int
    nonce: bytes
    label: str
    opened_by: Route
    route: Route
    peer: str | None  # the address of its host, if that is known
    lease_end: float
    writes: Account  # the memory that its writes take
    waits: Account  # the memory that its requests take that wait for a key
    loads: Account  # the same of those that wait for bytes
    identity: Identity = ANYONE
    open: bool = True
    renewed: bool = False
    seen: int = 0  # the Local waits for no outcome of a write below this number
    welcome: Welcome | None = None
    outcomes: dict[int, ActiveWrite | bytes] = field(default_factory=dict)  # by number of the write

    def __repr__(self) -> str:
        return (
            f"<Session no. {self.number} {self.label!r} lease_end={self.lease_end:.3f} "
            f"outcomes={len(self.outcomes)}>"
        )

    def may_hold(self, key: Key) -> bool:
        """Whether this session may become a holder of a key: only if its Local will be told."""
        identity = self.identity
        known = self.open and self.bit != NO_BIT
        return known and not identity.revoked and identity.sees(key)

    def record(self, write: ActiveWrite, reply: WriteReply) -> None:
        """Keep the outcomes of a write that has ended, if they may be asked for again."""
        change = -write.cost
        if self.open and write.number >= self.seen:
            outcome = self.outcomes[write.number] = recorded(reply)
            change += OUTCOME_OVERHEAD + len(outcome)
        self.writes.take(change)

    def record_not_executed(self, number: int) -> None:
        """Keep for a write that no copy of it is ever to be executed in this session."""
        self.outcomes[number] = NOT_EXECUTED
        self.writes.take(OUTCOME_OVERHEAD + len(NOT_EXECUTED))

    def forget_outcomes(self, seen: int) -> None:
        """Forget the outcomes of the writes below ``seen``: the Local has them."""
        if seen > self.seen:
            self.seen = seen
            for write in [write for write in self.outcomes if write < seen]:
                self._forget(write)

    def forget_all_outcomes(self) -> None:
        for write in list(self.outcomes):
            self._forget(write)

    def _forget(self, write: int) -> None:
        outcome = self.outcomes.pop(write)
        if isinstance(outcome, bytes):  # an active write counts until it has ended
            self.writes.take(-OUTCOME_OVERHEAD - len(outcome))


@dataclass(slots=True, eq=False, repr=False)
class ActiveWrite:
    """A SET, DEL or EXPIRE from its arrival until all its ``size`` items have outcomes.

    ``number`` is that of the write within its session. ``holder`` is the session that may cache the
    values, or None. ``route`` and ``request`` are those of its latest repeat. ``cost`` is in bytes.
    ``ttl`` is that of the message: seconds, or None.
    """

    route: Route
    request: int
    session: Session
    holder: Session | None
    number: int
    kind: type[WriteReply]
    cost: int
    size: InitVar[int]
    ttl: float | None = None
    _left: int = field(init=False)
    _results: list[WriteResult | None] = field(init=False)
    _room: int = BATCH_BYTES_MAX

    def __post_init__(self, size: int) -> None:
        self._left = size
        self._results = [None] * size

    def __repr__(self) -> str:
        return f"<ActiveWrite {self.number} of session no. {self.session.number} left={self._left}>"

    def reserve(self, size: int) -> bool:
        """Reserve room in the reply for a value of ``size`` bytes. Returns whether it fits.

        A single value always fits.
        """
        self._room -= size
        return self._room >= 0 or self._room + size == BATCH_BYTES_MAX

    def note(self, index: int, result: WriteResult) -> bool:
        """Record the outcome of one item. Returns whether it was the last one to come."""
        self._results[index] = result
        self._left -= 1
        return not self._left

    def reply(self, epoch: int) -> WriteReply:
        """Return the reply, when all items have outcomes."""
        return self.kind(epoch, self.session.id, self.request, cast("list[Any]", self._results))


def recorded(reply: WriteReply) -> bytes:
    """Pack the outcomes of a reply, without values and without leave to cache anything.

    By the time a repeat is answered the value may have been deleted, and its writer, which has
    acknowledged that deletion, is no longer one of its holders.
    """
    pack = _OUTCOME.pack
    if type(reply) is DelReply:
        if len(reply.items) == 1:
            return _DEL + pack(*reply.items[0])
        return _DEL + b"".join([pack(*each) for each in reply.items])
    if type(reply) is ExpireReply:
        return _EXPIRE + bytes(reply.items)
    assert type(reply) is SetReply
    packed = [pack(each.status, each.seq, each.confirmed, each.expired, 0) for each in reply.items]
    return _SET + b"".join(packed)


def repeated(outcomes: bytes, envelope: tuple[int, int, int]) -> WriteReply:
    """Return the reply to a repeat of a finished write. ``envelope`` is that of the repeat."""
    if outcomes[:1] == _EXPIRE:
        return ExpireReply(*envelope, [ExpireStatus(status) for status in outcomes[1:]])
    rows = _OUTCOME.iter_unpack(outcomes[1:])
    if outcomes[:1] == _DEL:
        return DelReply(*envelope, [DelResult(DelStatus(status), *rest) for status, *rest in rows])
    items = [
        SetResult(SetStatus(status), seq, False, None, confirmed, expired)
        for status, seq, confirmed, expired, _ in rows
    ]
    return SetReply(*envelope, items)


class Belongings:
    """What all sessions of one identity have together, and its requests without a session."""

    def __init__(self, sessions: Sessions, identity: Identity) -> None:
        limited = identity is not ANYONE
        budgets = sessions.writes, sessions.waits, sessions.loads
        self.sessions = 0
        self.writes, self.waits, self.loads = [Group(b) if limited else None for b in budgets]
        self.waits_of_none = Account(sessions.waits, self.waits)
        self.loads_of_none = Account(sessions.loads, self.loads)
        self.shown: tuple[float, tuple[int, int], dict[str, object]] = (0.0, (0, 0), {})


class Sessions:
    """All open sessions, by id, by secret, by nonce and by holder bit.

    ``lease`` is in seconds. ``random63`` returns 63 random bits, for ids and secrets.
    """

    def __init__(self, lease: float, random63: Callable[[], int]) -> None:
        self.lease = lease
        self.linger = LINGER_LEASES * lease
        self._linger_first = min(self.linger, max(0.0, JOIN_TIMEOUT - lease))
        self.holders = Holders()
        self._by_id: dict[int, Session] = {}
        self.get: Callable[[int], Session | None] = self._by_id.get
        """Returns the open session with this id, or None. Each request looks its session up."""
        self._by_secret: dict[int, Session] = {}
        self._by_nonce: dict[tuple[Identity, bytes], Session] = {}
        self._by_bit: dict[int, Session] = {}
        self._by_route: Counter[Route] = Counter()  # how many open sessions each has opened
        self._by_peer: Counter[str | None] = Counter()
        self._by_kind: Counter[Kind] = Counter()
        self._mask = 0
        self._number = 0
        self._random63 = random63
        self._belongings: dict[Identity, Belongings] = {}
        self.writes = Budget(WRITES_BYTES_MAX, WRITES_BYTES_SHARE, WRITES_BYTES_ASSURED)
        self.waits = Budget(WAITS_BYTES_MAX, WAITS_BYTES_SHARE, WAITS_BYTES_ASSURED)
        self.loads = Budget(LOADS_BYTES_MAX, LOADS_BYTES_SHARE, LOADS_BYTES_ASSURED)
        self.writes_of_global = Account(self.writes)
        """The account of the deletions that Global begins by itself."""

    def __repr__(self) -> str:
        return f"<Sessions open={len(self)} opened={self._number}>"

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_id.values())

    def by_nonce(self, nonce: bytes, identity: Identity = ANYONE) -> Session | None:
        """Return the open session that this identity has opened with this nonce, or None."""
        return self._by_nonce.get((identity, nonce))

    def by_secret(self, secret: int, identity: Identity = ANYONE) -> Session | None:
        """Return the open session of this identity with this secret, or None."""
        session = self._by_secret.get(secret)
        return session if session is not None and session.identity is identity else None

    def of(self, identity: Identity) -> list[Session]:
        """Return the open sessions of this identity."""
        return [each for each in self if each.identity is identity]

    def belongings(self, identity: Identity) -> Belongings:
        """Return what all sessions of this identity have together."""
        belongings = self._belongings.get(identity)
        if belongings is None:
            belongings = self._belongings[identity] = Belongings(self, identity)
        return belongings

    def waits_account(self, session: Session | None, identity: Identity) -> Account:
        """Return the account of a request that waits for a key, in the name of this session."""
        return self.belongings(identity).waits_of_none if session is None else session.waits

    def loads_account(self, session: Session | None, identity: Identity) -> Account:
        """Return the account of a request that waits for bytes, in the name of this session."""
        return self.belongings(identity).loads_of_none if session is None else session.loads

    def forget(self, identity: Identity) -> None:
        """An identity was revoked: what its last sessions still have is counted without it."""
        self._belongings.pop(identity, None)

    def open(
        self,
        hello: Hello,
        route: Route,
        now: float,
        peer: str | None = None,
        identity: Identity = ANYONE,
    ) -> Session:
        """Open a session, with a lease from now."""
        session = self._add(hello, route, now + self.lease, peer, identity)
        session.secret = self._fresh(self._by_secret)
        self._by_secret[session.secret] = session
        self._by_nonce[identity, session.nonce] = session
        return session

    def open_own(self, label: str) -> Session:
        """Open the session of Global's own host, whose lease Global itself renews."""
        return self._add(Hello(b"", 0, NO_SESSION, label), b"", float("inf"), None, ANYONE)

    def _add(
        self, hello: Hello, route: Route, lease_end: float, peer: str | None, identity: Identity
    ) -> Session:
        self._number += 1
        belongings = self.belongings(identity)
        session = Session(
            id=self._fresh(self._by_id),
            secret=NO_SESSION,
            kind=hello.kind,
            number=self._number,
            bit=self.holders.claim() if hello.kind is Kind.MEMBER else NO_BIT,
            nonce=hello.nonce,
            label=hello.label,
            opened_by=route,
            route=route,
            peer=peer,
            lease_end=lease_end,
            writes=Account(self.writes, belongings.writes),
            waits=Account(self.waits, belongings.waits),
            loads=Account(self.loads, belongings.loads),
            identity=identity,
        )
        belongings.sessions += 1
        self._by_route[route] += 1
        self._by_peer[peer] += 1
        self._by_kind[session.kind] += 1
        self._by_id[session.id] = session
        if session.bit != NO_BIT:
            self._by_bit[session.bit] = session
            self._mask |= 1 << session.bit
        return session

    def _fresh(self, used: dict[int, Session]) -> int:
        """Draw a number that is not in use. 63 random bits do not repeat within one epoch."""
        number = NO_SESSION
        while number == NO_SESSION or number in used:
            number = self._random63()
        return number

    def renew(self, session: Session, now: float) -> None:
        """Give a session a lease from now."""
        session.renewed = True
        session.lease_end = now + self.lease

    def heard(self, session: Session, now: float) -> None:
        """Note a write, its repeat or a part of an upload: a WRITER is dropped after a silence."""
        if session.kind is Kind.WRITER:
            session.renewed = True
            session.lease_end = now + WRITER_IDLE

    def crowded(self, route: Route) -> bool:
        """Whether this connection has opened as many sessions as it may have."""
        return self._by_route[route] >= SESSIONS_PER_ROUTE_MAX

    def of_peer(self, peer: str | None) -> int:
        """How many sessions there are on one host."""
        return self._by_peer[peer]

    def of_identity(self, identity: Identity) -> int:
        """How many sessions of one identity are open."""
        return self.belongings(identity).sessions

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
        self._by_kind[session.kind] -= 1
        if session.identity in self._belongings:
            self._belongings[session.identity].sessions -= 1
        del self._by_id[session.id]
        self._by_secret.pop(session.secret, None)
        self._by_nonce.pop((session.identity, session.nonce), None)
        if session.bit != NO_BIT:
            del self._by_bit[session.bit]
            self._mask ^= 1 << session.bit
            self.holders.retire(session.bit)

    def holding(self, key: Key) -> list[Session]:
        """Return the open sessions that have been handed the value of ``key``."""
        return [self._by_bit[bit] for bit in bits_of(self.holders.of(key) & self._mask)]

    def lingers_until(self, session: Session) -> float:
        """Return when a session is dropped if no further message comes from it.

        That of a revoked identity never comes back, so it does not outlive its lease.
        """
        if session.identity.revoked:
            return session.lease_end
        if not session.renewed:
            return session.lease_end + self._linger_first
        writer = session.kind is Kind.WRITER
        return session.lease_end + (max(WRITER_SILENCE, self.linger) if writer else self.linger)

    def metrics(self, now: float, identity: Identity = ANYONE) -> dict[str, object]:
        """Return the number of sessions of each kind, and what is known of each Local.

        Only memberships count as lapsed. The metrics contain neither ids nor secrets. An identity
        without the role ADMIN is shown its own Locals.
        """
        return {
            "sessions": self._by_kind[Kind.MEMBER],
            "writers": self._by_kind[Kind.WRITER],
            "observers": self._by_kind[Kind.OBSERVER],
            **self._leases(now, identity),
        }

    def _leases(self, now: float, identity: Identity) -> dict[str, object]:
        """Return how many leases have run out, and the labels, kinds and leases of the Locals."""
        belongings, everyone = self.belongings(identity), identity.role >= Role.ADMIN
        until, generation, shown = belongings.shown
        if now >= until or generation != (self._number, len(self)):
            seen = (each for each in self if everyone or each.identity is identity)
            shown = {
                "lapsed": sum(each.lease_end <= now for each in self if each.kind is Kind.MEMBER),
                "locals": {
                    str(each.number): {
                        "label": each.label,
                        "kind": each.kind.name.lower(),
                        "lease_left": self._lease_left(each, now),
                        **_named(each),
                    }
                    for each in islice(seen, LOCALS_SHOWN)
                },
            }
            until = now + SHOWN_PER_LOCAL * len(self)
            belongings.shown = until, (self._number, len(self)), shown
        return shown

    def _lease_left(self, session: Session, now: float) -> float:
        if session.kind is Kind.WRITER:
            return 0.0
        return min(self.lease, max(0.0, session.lease_end - now))


def _named(session: Session) -> dict[str, object]:
    """Return the name of the identity of a session, for the metrics, if it has one."""
    return {"identity": session.identity.name} if session.identity.name else {}
