"""How Global answers the requests that change no key: GET, WAIT, OFFER, TTL, SCAN and FETCH.

A reader becomes a holder of the value in the same step in which the engine is read. So no deletion
can start in between and miss the new holder.

A WAIT of a key that is not bound is kept for the time that it names, so that Locals need not poll.
It is answered as a GET would be: when the key is bound, or with "missing" when the time has passed.
A Local that wants to wait for longer asks again. When a session ends, its requests are dropped. A
request is named by its session and its number; the numbers of two processes that share a session
differ, since each begins at a random one.
Many requests may wait for one key, whose value may be large. They are answered a few at a time, so
that other messages do not wait until all of them are answered.

A request may name the session of another identity, which is then the holder. What may be read
is decided by the identity of the connection, and what may be cached by that of the session: see
:mod:`dstore.core.authority.sessions`. A waiting request belongs to the identity that has asked.

A value that is away is answered when the engine has loaded it; see
:mod:`dstore.core.authority.loads`. Of many keys those before the first value that is away are
answered at once, and the Local asks again for the rest. So it is with a part of a large value; see
:mod:`dstore.core.authority.fetches`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from dstore.config import BATCH_BYTES_MAX, KEYS_PER_MESSAGE_MAX
from dstore.core.authority.acknowledgements import PendingDeletion
from dstore.core.authority.budgets import Account, text_bytes
from dstore.core.authority.deadlines import Deadlines
from dstore.core.authority.effects import NEVER, Alarm, Outbox, Refuse
from dstore.core.authority.fetches import Fetches
from dstore.core.authority.holders import Holders
from dstore.core.authority.identity import ANYONE, Identity
from dstore.core.authority.invalidations import InvalidationLog
from dstore.core.authority.loads import Loads, Overlay, Parked, keys_of
from dstore.core.authority.partitions import Partitions
from dstore.core.authority.sessions import NO_BIT, Session, Sessions
from dstore.core.engine import Away, Bulk, Engine, Loaded, Unloaded
from dstore.protocol.messages import (
    NO_SESSION,
    NO_TOKEN,
    UNREADABLE,
    Body,
    Buffer,
    Chunk,
    Fetch,
    Get,
    GetReply,
    Key,
    Large,
    Offer,
    Offered,
    Refusal,
    Route,
    Scan,
    ScanReply,
    Stored,
    Ttl,
    TtlReply,
    Unwait,
    Wait,
)
from dstore.protocol.offers import DIGEST_BYTES, OFFER_BYTES_MAX, OFFER_KEYS_MAX, digest, weight
from dstore.protocol.partitions import from_bitmap, partition_of

ANSWERS_BYTES = BATCH_BYTES_MAX
"""Bytes of answers to waiting requests in one step; each answer counts ``ANSWER_BYTES`` more."""
ANSWER_BYTES = 1_000
WAIT_BYTES = 1_200
"""The memory that a waiting request takes at most, beside its key."""
TIMEOUT_MAX = 60.0
"""Seconds that a request waits at most."""
Name: TypeAlias = tuple[int, int, Identity]
"""The session of a waiting request, its number, and who has asked."""
NONE_LOADED: Overlay = {}
ENDS_MIN = 1_000
"""Entries of the heap of ends from which on it is searched for requests that were answered."""


class Waiting(NamedTuple):
    """One waiting request, perhaps without a session. Its answer goes to ``route``."""

    session: Session | None
    route: Route
    message: Wait
    identity: Identity
    account: Account


class Waits:
    """The waiting requests by key, by session, and by when they end."""

    def __init__(self, alarm: Alarm, sessions: Sessions) -> None:
        self._alarm = alarm
        self._sessions = sessions
        self._by_key: dict[Key, dict[Name, Waiting]] = {}
        self._ends: list[tuple[float, int, Key, Name]] = []
        self._of: dict[int, set[tuple[Key, Name]]] = {}  # by session
        self._answerable: deque[Key] = deque()  # keys that have been bound
        self._count = 0
        self._serial = 0

    def __repr__(self) -> str:
        return f"<Waits {self._count} for {len(self._by_key)} keys>"

    def __len__(self) -> int:
        return self._count

    @property
    def wake_at(self) -> float:
        """When requests can next be answered or expire."""
        if self._answerable:
            return 0.0
        return self._ends[0][0] if self._ends else NEVER

    def add(
        self,
        session: Session | None,
        route: Route,
        message: Wait,
        now: float,
        identity: Identity = ANYONE,
    ) -> None:
        """Keep a request. The answer goes to where its latest repeat came from.

        Raises Refuse if there is no room for it.
        """
        name = (message.session, message.request, identity)
        account = self._sessions.waits_account(session, identity)
        if name not in self._by_key.get(message.key, ()):
            cost = _cost(message.key)
            if not account.admits(cost):
                taken = f"{account.taken:,} bytes of them of this session"
                raise Refuse(Refusal.BUSY, f"too many requests wait, {taken}")
            account.take(cost)
            self._count += 1
            self._serial += 1
            self._of.setdefault(message.session, set()).add((message.key, name))
            end = now + min(message.timeout, TIMEOUT_MAX)
            heapq.heappush(self._ends, (end, self._serial, message.key, name))
            self._alarm.at(end)
        waiting = Waiting(session, route, message, identity, account)
        self._by_key.setdefault(message.key, {})[name] = waiting

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

    def drop(self, message: Unwait, identity: Identity = ANYONE) -> None:
        """Drop a request that its sender has given up. It need not be here."""
        name = (message.session, message.request, identity)
        if name in self._by_key.get(message.key, ()):
            self._take(message.key, name)

    def end(self, session: Session) -> None:
        for key, name in list(self._of.get(session.id, ())):
            self._take(key, name)

    def revoke(self, identity: Identity) -> None:
        """Drop the requests of an identity, in whatever session."""
        for key, of_key in list(self._by_key.items()):
            for name in [name for name in of_key if name[2] is identity]:
                self._take(key, name)

    def waiting(self) -> Iterator[tuple[Route, Wait]]:
        """Yield the requests, each with where its answer would go."""
        for of_key in self._by_key.values():
            for waiting in of_key.values():
                if not waiting.identity.revoked:
                    yield waiting.route, waiting.message

    def expire(self, now: float) -> Iterator[Waiting]:
        """Remove and yield the requests whose time has passed."""
        while self._ends and self._ends[0][0] <= now:
            _, _, key, name = heapq.heappop(self._ends)
            if name in self._by_key.get(key, ()):
                yield self._take(key, name)

    def _take(self, key: Key, name: Name) -> Waiting:
        waiting, of_one = self._by_key[key], self._of[name[0]]
        taken = waiting.pop(name)
        taken.account.take(-_cost(key))
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


@dataclass(eq=False, repr=False)
class Reads:
    """The reading half of :class:`~dstore.core.authority.state.GlobalState`."""

    _epoch: int
    _engine: Engine
    _bulk: Bulk
    _holders: Holders
    _log: InvalidationLog
    _pending: dict[Key, PendingDeletion]
    _waits: Waits
    _loads: Loads
    _fetches: Fetches
    _deadlines: Deadlines
    _out: Outbox
    _partitions: Partitions | None = None

    def get(
        self, session: Session | None, route: Route, message: Get, now: float, identity: Identity
    ) -> None:
        """Answer a GET, now or when values have been loaded."""
        self._out.counters["gets"] += len(message.keys)
        self._answer(session, route, message, now, identity)

    def reply(
        self, session: Session | None, request: int, keys: list[Key], loaded: Overlay = NONE_LOADED
    ) -> GetReply | None:
        """Return the reply to a GET of ``keys``. One that would become too large ends early.

        It also ends before the first value that is away and not among those ``loaded``; if that is
        the first of all, None is returned, and nobody has become a holder. Without a session, or
        for one that is no holder, no value is cacheable.
        """
        read, pending = self._engine.read, self._pending
        hold: Callable[[Key, int], bool] = self._holders.add
        bit = NO_BIT if session is None else session.bit
        if session is not None and session.identity is not ANYONE:
            hold = self._hold_for(session)
        codecs: list[str] = []
        tokens: list[bytes] = []
        bodies: list[Body | None] = []
        uncacheable: list[int] = []
        room = BATCH_BYTES_MAX
        seq = self._log.seq  # before the engine is read
        for key in keys:
            stored = read(key)
            if stored is None:
                codecs.append("")
                tokens.append(NO_TOKEN)
                bodies.append(None)
                continue
            token, codec, body = stored
            if type(body) is bytes:
                room -= len(body)
            elif isinstance(body, int):  # the size of a value that is away
                if (key, token) not in loaded:
                    break
                found = loaded[key, token]
                if found is None:
                    uncacheable.append(len(bodies))
                    codecs.append(UNREADABLE)
                    tokens.append(token)
                    bodies.append(b"")
                    continue
                body = found
                room -= len(body)
            elif type(body) is not Large:
                room -= len(body)
            if key in pending or bit == NO_BIT or not hold(key, bit):
                uncacheable.append(len(bodies))
            codecs.append(codec)
            tokens.append(token)
            bodies.append(body)
            if room <= 0:
                break
        if not bodies:
            return None
        name = NO_SESSION if session is None else session.id
        return GetReply(
            self._epoch, name, request, seq, codecs, b"".join(tokens), bodies, uncacheable
        )

    def _hold_for(self, session: Session) -> Callable[[Key, int], bool]:
        """Return what makes a session a holder of those keys that it may hold."""
        identity, hold = session.identity, self._holders.add
        if not identity.prefixes and not identity.revoked:
            return hold
        return lambda key, bit: session.may_hold(key) and hold(key, bit)

    def offer(
        self, session: Session | None, route: Route, message: Offer, now: float, identity: Identity
    ) -> None:
        """Answer an OFFER: a value that is still the same is as good as one that is read now.

        So its session becomes a holder, as by a GET. A key whose deletion is pending is not named,
        and neither is one whose value is away: the Local asks for that. For who does not see a key
        it is not the same, and neither is one of a partition that is not owned.
        """
        self._out.counters["offers"] += 1
        name, bit = (NO_SESSION, NO_BIT) if session is None else (session.id, session.bit)
        room, seq, digests = OFFER_BYTES_MAX, self._log.seq, message.digests
        same: list[int] = []
        tokens: list[bytes] = []
        for index, key in enumerate(message.keys[:OFFER_KEYS_MAX] if bit != NO_BIT else ()):
            stored = self._engine.read(key)
            if stored is None or isinstance(stored, Away) or key in self._pending:
                continue
            assert session is not None
            if not (identity.sees(key) and session.may_hold(key)):
                continue
            if self._partitions is not None and not self._partitions.owns(key):
                continue
            if type(stored.body) is memoryview:
                continue
            room -= weight(stored.body)
            if room < 0:
                break
            offered = digests[DIGEST_BYTES * index : DIGEST_BYTES * (index + 1)]
            bound = digest(self._epoch, name, stored.codec, stored.body)
            if offered == bound and self._holders.add(key, bit):
                same.append(index)
                tokens.append(stored.token)
        self._out.counters["revalidated"] += len(same)
        envelope = self._epoch, name, message.request
        self._out.send(route, Offered(*envelope, seq, same, b"".join(tokens)))

    def wait(
        self, session: Session | None, route: Route, message: Wait, now: float, identity: Identity
    ) -> None:
        """Answer a WAIT, now or when its key has been bound."""
        self._out.counters["waits"] += 1
        if self._engine.read(message.key) is not None:
            self._answer(session, route, message, now, identity)
        else:
            self._waits.add(session, route, message, now, identity)

    def answer_bound(self, now: float) -> None:
        """Answer some of the requests whose keys have been bound; the next ticks answer others."""
        room = ANSWERS_BYTES
        while room > 0 and (key := self._waits.answerable()) is not None:
            stored = self._engine.read(key)
            if stored is None:
                self._waits.gone()
            else:
                self._answer_kept(self._waits.take(key), now)
                room -= ANSWER_BYTES + stored.inline

    def expire(self, now: float) -> None:
        """Answer the requests whose timeout has passed."""
        for waiting in self._waits.expire(now):
            self._answer_kept(waiting, now)

    def _answer_kept(self, waiting: Waiting, now: float) -> None:
        if waiting.identity.revoked:
            return
        try:
            self._answer(*waiting[:3], now, waiting.identity)
        except Refuse as refuse:
            self._out.refuse(waiting.route, waiting.message, *refuse.args)

    def _answer(
        self,
        session: Session | None,
        route: Route,
        message: Get | Wait,
        now: float,
        identity: Identity,
    ) -> None:
        """Answer a request, or park it until values have been loaded. Raises Refuse."""
        keys = keys_of(message)
        reply = self.reply(session, message.request, keys)
        if reply is None:
            away = self._away(keys, NONE_LOADED)
            self._loads.park(session, route, message, away, now, identity)
        else:
            self._out.send(route, reply)

    def _away(self, keys: list[Key], loaded: Overlay) -> list[tuple[Key, Away]]:
        """Return the values that a reply to a GET of ``keys`` would have and that are to be loaded.

        Those ``loaded`` are here already.
        """
        wanted: dict[tuple[Key, bytes], tuple[Key, Away]] = {}
        room = BATCH_BYTES_MAX
        for key in keys:
            stored = self._engine.read(key)
            if stored is None:
                continue
            if type(stored) is Away and (key, stored.token) not in loaded:
                wanted[key, stored.token] = (key, stored)
            room -= stored.inline
            if room <= 0:
                break
        return list(wanted.values())

    def answer_loaded(self) -> None:
        """Answer some of the requests whose values have been loaded; the next ticks answer others.

        Each is executed from its beginning, as if it came now.
        """
        room = ANSWERS_BYTES
        while room > 0 and (parked := self._loads.take()) is not None:
            room -= ANSWER_BYTES + sum([len(body or b"") for body in parked.bodies.values()])
            over = True
            try:
                over = self._answer_parked(parked)
            except Refuse as refuse:
                self._out.refuse(parked.route, parked.message, *refuse.args)
            finally:
                if over:
                    self._loads.leave(parked)

    def _answer_parked(self, parked: Parked) -> bool:
        """Answer a request with what was loaded. Returns whether it is over; raises Refuse."""
        session, message = parked.session, parked.message
        if parked.withdrawn or parked.identity.revoked:
            return True
        if session is not None and not session.open:  # its bit may be another's
            raise Refuse(Refusal.UNKNOWN_SESSION, "the session has ended")
        if type(message) is Wait and self._engine.read(message.key) is None:
            self._waits.add(session, parked.route, message, parked.since, parked.identity)
            return True
        keys = keys_of(message)
        reply = self.reply(session, message.request, keys, parked.bodies)
        if reply is None:
            self._loads.again(parked, self._away(keys, parked.bodies))
            return False
        self._out.send(parked.route, reply)
        return True

    def ttl(
        self, session: Session | None, route: Route, message: Ttl, now: float, identity: Identity
    ) -> None:
        """Answer when a key expires. If its deadline has passed and it is bound still: now."""
        self._out.counters["ttls"] += 1
        bound = self._engine.read(message.key) is not None
        left = self._deadlines.left(message.key) if bound else None
        self._out.send(route, TtlReply(self._epoch, *message[1:3], bound, left))

    def scan(
        self, session: Session | None, route: Route, message: Scan, now: float, identity: Identity
    ) -> None:
        """Answer a SCAN with a page of the keys that its sender sees, in the partitions it names.

        A page has at most ``limit`` keys, and fewer if some of these are in other partitions.
        """
        self._out.counters["scans"] += 1
        wanted = set(from_bitmap(message.partitions)) if message.partitions else None
        if self._partitions is not None and wanted is not None:
            self._partitions.check_numbers(wanted)
        limit = max(1, min(message.limit, KEYS_PER_MESSAGE_MAX))
        keys: list[Key] = []
        for prefix in identity.within(message.prefix):
            if len(keys) < limit:
                keys += self._engine.scan(prefix, message.after, limit - len(keys))
        after = keys[-1] if len(keys) == limit else ""
        if wanted is not None:
            keys = [key for key in keys if partition_of(key) in wanted]
        elif self._partitions is not None:
            keys = list(filter(self._partitions.owns, keys))
        reply = ScanReply(self._epoch, message.session, message.request, keys, after)
        self._out.send(route, reply)

    def fetch(
        self, session: Session | None, route: Route, message: Fetch, now: float, identity: Identity
    ) -> None:
        """Answer a FETCH of the large value that its key has now, if its sender sees the key."""
        if self._partitions is not None:
            self._partitions.check((message.key,))
        try:
            part = self._part(message, identity)
        except Unloaded as unloaded:
            self._fetches.park(session, route, message, unloaded.length, identity)
        else:
            self._answer_fetch(route, message, part)

    def _part(self, message: Fetch, identity: Identity) -> memoryview | None:
        """Return the part that a FETCH asks for, if its key has that value and is seen.

        Raises Unloaded.
        """
        stored = self._engine.read(message.key) if identity.sees(message.key) else None
        # A small value could have been given the token of a large one, to get at its bytes.
        large = isinstance(stored, Stored) and type(stored.body) is Large
        if stored is not None and large and stored.token == message.token:
            return self._bulk.read(message.token, message.offset, message.length)
        return None

    def _answer_fetch(self, route: Route, message: Fetch, data: Buffer | None) -> None:
        if not data:
            raise Refuse(Refusal.GONE, "the value is not here any more")
        self._out.counters["chunks_out"] += 1
        self._out.counters["bytes_out"] += len(data)
        envelope = (self._epoch, *message[1:3])
        self._out.send(route, Chunk(*envelope, message.token, message.offset, data))

    def part_loaded(self, number: int, results: Sequence[Loaded]) -> bool:
        """Answer the FETCH whose part was loaded. Returns False if no FETCH has waited for it.

        It is executed from its beginning, as if it came now. It is not answered if the part could
        not be read at present: "gone" would be wrong, and the Local asks again.
        """
        parked = self._fetches.ended(number)
        if parked is None:
            return False
        result = results[0] if results else None
        data = result if isinstance(result, (bytes, memoryview)) else None
        if data is not None and len(data) != parked.length:
            data = None
        self._out.counters["loads"] += 1
        self._out.counters["failed_loads"] += data is None
        if parked.identity.revoked:
            return True
        try:
            if parked.session is not None and not parked.session.open:
                raise Refuse(Refusal.UNKNOWN_SESSION, "the session has ended")
            try:
                data = self._part(parked.message, parked.identity)
            except Unloaded:
                if data is None and not isinstance(result, LookupError):
                    return True
            self._answer_fetch(parked.route, parked.message, data)
        except Refuse as refuse:
            self._out.refuse(parked.route, parked.message, *refuse.args)
        return True
