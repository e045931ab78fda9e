"""What Global does with each event: the authority's half of the coherence protocol.

Pure: messages and the time go in, effects come out, and nothing here waits. The host carries the
effects out in their order. Every call is atomic with respect to every other, engine included.

Here are sessions, leases and reading; :mod:`dstore.core.authority.writes` binds and deletes. The rules, and
what goes wrong without each, are told in ``docs/protocol.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from dstore.config import BATCH_BYTES_MAX, CLIENTS_MAX_DEFAULT, KEYS_PER_MESSAGE_MAX, share_of
from dstore.core.authority.effects import GlobalEffect
from dstore.core.authority.invalidations import Invalidations
from dstore.core.authority.log import DeletionLog
from dstore.core.authority.outbox import Outbox
from dstore.core.authority.pending import PendingDeletions
from dstore.core.authority.sessions import Session, Sessions
from dstore.core.authority.stages import StageRefused, Stages
from dstore.core.authority.waits import Waits
from dstore.core.authority.writes import Writes
from dstore.core.engine import Bulk, Engine
from dstore.protocol.messages import (
    Ack,
    Chunk,
    Del,
    Farewell,
    Fetch,
    Found,
    Get,
    GetReply,
    Goodbye,
    Hello,
    Key,
    Refusal,
    RequestMessage,
    Route,
    Scan,
    ScanReply,
    Set,
    Stage,
    Staged,
    Stats,
    StatsReply,
    Sync,
    ToGlobal,
    Unstage,
    Unwait,
    Wait,
    Welcome,
)

LOCALS_SHOWN = 1_000
"""Of so many Locals the metrics name each, the oldest ones."""
SHOWN_PER_LOCAL = 20e-6
"""Seconds for each Local within which the metrics of all are not gathered again. A peer that asks
for them all the time takes no more than a few percent of Global's time.
"""
MAKE_ROOM_PAUSE = 0.1
"""Seconds between two looks for sessions whose places can be given to others."""
ANSWERS_BYTES = BATCH_BYTES_MAX
"""Bytes of answers to requests that waited for a key, in one step; and more for each answer."""
ANSWER_BYTES = 1_000
SWEEP_KEYS = 2_000
"""Keys whose retired holder bits are cleared in one step."""
NEVER = float("inf")


class GlobalState:
    """The state of one life of a Global.

    ``epoch`` is random and names this life; ``publisher`` is where Locals hear deletions;
    ``lease`` is in seconds; ``bulk`` has the bytes of large values, which are those of
    ``large_from`` bytes on; no value may have more than ``value_limit``. ``random63`` gives 63
    random bits that nobody can guess; ``max_clients`` Locals are taken in, of
    which those of one address, which ``peer_of`` tells, may have a share. ``wake_at`` is when
    :meth:`tick` is next due.
    """

    def __init__(
        self,
        engine: Engine,
        bulk: Bulk,
        *,
        epoch: int,
        publisher: str,
        lease: float,
        log_length: int,
        value_limit: int,
        large_from: int,
        random63: Callable[[], int],
        max_clients: int = CLIENTS_MAX_DEFAULT,
        peer_of: Callable[[Route], str | None] = lambda route: None,
    ) -> None:
        self.epoch = epoch
        self.lease = lease
        self.wake_at = NEVER
        self._engine = engine
        self._bulk = bulk
        self._publisher = publisher
        self._value_limit = value_limit
        self._large_from = large_from
        self._max_clients = max_clients
        self._peer_of = peer_of
        self._out = Outbox()
        self._log = DeletionLog(log_length)
        self._sessions = Sessions(lease, random63)
        self._holders = self._sessions.holders
        self._deletions = PendingDeletions(self._log, self._sessions, lease)
        self._stages = Stages(bulk)
        self._waits = Waits()
        self._watching: dict[int, Session] = {}
        self._invalidations = Invalidations(
            epoch, self._log, self._sessions, self._deletions, self._out
        )
        self._writes = Writes(
            epoch,
            engine,
            bulk,
            self._stages,
            self._sessions,
            self._deletions,
            self._invalidations,
            self._out,
            value_limit,
        )
        self._drop_at = NEVER
        self._make_room_at = 0.0
        self._shown: dict[str, object] = {}
        self._shown_of = (0, 0)
        self._shown_until = 0.0
        # What only reads settles nothing, and brings nothing forward.
        self._readers: dict[type, Callable[..., None]] = {
            Get: self._on_get,
            Scan: self._on_scan,
            Stats: self._on_stats,
            Fetch: self._on_fetch,
        }
        self._handlers: dict[type, Callable[..., None]] = {
            Hello: self._on_hello,
            Sync: self._on_sync,
            Ack: self._on_ack,
            Goodbye: self._on_goodbye,
            Wait: self._on_wait,
            Set: self._on_set,
            Del: self._on_del,
            Stage: self._on_stage,
            Unstage: self._on_unstage,
            Unwait: self._on_unwait,
        }

    def __repr__(self) -> str:
        return (
            f"<GlobalState epoch={self.epoch:x} {self._log!r} {self._sessions!r} "
            f"{self._deletions!r}>"
        )

    @property
    def idle(self) -> bool:
        """Whether nobody waits for an answer, and all is published."""
        answered = not self._deletions.pending and self._waits.answerable() is None
        return answered and self._invalidations.wake_at == NEVER

    @property
    def counters(self) -> dict[str, int]:
        """How often what has happened. The host counts malformed frames and cuts here."""
        return self._out.counters

    # ---- events ---------------------------------------------------------------------------

    def receive(self, route: Route, message: ToGlobal, now: float) -> list[GlobalEffect]:
        """Take one message. ``now`` must have been read after the message arrived: a lease
        counted from earlier would end here before its Local gives it up.
        """
        reader = self._readers.get(type(message))
        if reader is not None:
            reader(route, message, now)
            return self._out.take()
        self._handlers[type(message)](route, message, now)
        self._settle(now)
        self.wake_at = min(self.wake_at, self._next_wake(now))
        return self._out.take()

    def tick(self, now: float) -> list[GlobalEffect]:
        """Do what the passing of time calls for."""
        self._writes.expire(now)
        self._stages.expire(now)
        for session in self._deletions.late(now):
            self.counters["pushes"] += 1
            self._invalidations.push(session, now)
        if now >= self._drop_at:
            for session in self._sessions.silent(now):
                self._end_session(session, now)
            self._drop_at = now + self.lease if len(self._sessions) else NEVER
        self._invalidations.publish(now)
        self._holders.sweep(SWEEP_KEYS)
        for waiting in self._waits.expire(now):
            self._answer(*waiting)
        self._settle(now)
        self.wake_at = self._next_wake(now)
        return self._out.take()

    def _next_wake(self, now: float) -> float:
        if self._holders.sweeping:
            return now
        return min(
            self._drop_at,
            self._deletions.wake_at(),
            self._invalidations.wake_at,
            self._stages.wake_at,
            self._waits.wake_at,
        )

    def _settle(self, now: float) -> None:
        """Tell everybody what has come of this event."""
        self._writes.settle(now)
        if self._writes.bound:
            for key in self._writes.bound:
                self._waits.bound(key)
            self._writes.bound = []
        self._answer_waiting()
        if self._watching:
            self._invalidations.settle()

    def close(self) -> None:
        """From now on refuse new sessions and writes; what is under way goes on."""
        self._writes.closing = self._invalidations.closing = True
        self.wake_at = min(self.wake_at, self._invalidations.wake_at)

    # ---- sessions and leases --------------------------------------------------------------

    def _on_hello(self, route: Route, message: Hello, now: float) -> None:
        session = self._sessions.by_nonce(message.nonce)
        if session is None:
            if message.replaces_epoch == self.epoch:
                replaced = self._sessions.get(message.replaces_session)
                if replaced is not None:
                    self._end_session(replaced, now)
            refusal = self._no_place(route, now)
            if refusal is not None:
                self._out.refuse(route, message, *refusal)
                return
            session = self._open_session(route, message, now)
        # A repeated HELLO changes neither lease nor acknowledged number: its Local counts the
        # lease from when it first sent it.
        session.route = route
        assert session.welcome is not None
        self._out.send(route, session.welcome)

    def _no_place(self, route: Route, now: float) -> tuple[Refusal, str] | None:
        """Why no further session is opened."""
        if self._writes.closing:
            return Refusal.CLOSING, "Global is shutting down"
        if len(self._sessions) >= self._max_clients:
            self._make_room(now)
        if len(self._sessions) >= self._max_clients:
            return Refusal.BUSY, f"{self._max_clients:,} Locals are here, and --max-clients is that"
        peer = self._peer_of(route)
        most = share_of(self._max_clients)
        if peer is not None and self._sessions.of_peer(peer) >= most:
            self._make_room(now)
        if peer is not None and self._sessions.of_peer(peer) >= most:
            text = f"{most:,} Locals are here from {peer}, as many as one address may have; "
            return Refusal.BUSY, text + f"--max-clients is {self._max_clients:,}"
        if self._sessions.crowded(route):
            return Refusal.BUSY, "this connection has opened several sessions and ended none"
        return None

    def _make_room(self, now: float) -> None:
        """Where places are scarce, none is kept for a Local whose lease is over."""
        if now >= self._make_room_at:
            self._make_room_at = now + MAKE_ROOM_PAUSE
            self._writes.expire(now)  # or these would count as confirmed
            for session in [each for each in self._sessions if each.lease_end <= now]:
                self._end_session(session, now)

    def _open_session(self, route: Route, message: Hello, now: float) -> Session:
        session = self._sessions.open(message, route, now, self._peer_of(route))
        session.acked = session.told = self._log.seq
        session.lease_end = now + self.lease
        self._drop_at = min(self._drop_at, self._sessions.end(session))
        session.welcome = Welcome(
            self.epoch,
            session.id,
            message.nonce,
            self._log.seq,
            self.lease,
            self._publisher,
            self._value_limit,
            self._large_from,
        )
        return session

    def _on_sync(self, route: Route, message: Sync, now: float) -> None:
        session = self._session(route, message)
        if session is None or not self._acknowledge(session, route, message, now):
            return
        self.counters["syncs"] += 1
        session.forget_outcomes(message.seen)
        session.renewed = True
        session.lease_end = now + self.lease
        if message.watching:
            self._watching[session.id] = session
        else:
            self._watching.pop(session.id, None)
        self._invalidations.tell(session, message.serial, message.applied, now)

    def _on_ack(self, route: Route, message: Ack, now: float) -> None:
        session = self._session(route, message)
        if session is not None and self._acknowledge(session, route, message, now):
            self._invalidations.acknowledged(session, now)

    def _acknowledge(self, session: Session, route: Route, message: Sync | Ack, now: float) -> bool:
        heard = self._invalidations.heard(session)
        if message.applied > heard:
            text = f"deletion {message.applied} is one that you have not heard of, only of {heard}"
            self._out.refuse(route, message, Refusal.BAD_MESSAGE, text)
            return False
        session.route = route
        if message.applied > session.acked:
            session.acked = message.applied
            self._writes.confirm(session, message.applied, now)
        return True

    def _on_goodbye(self, route: Route, message: Goodbye, now: float) -> None:
        session = self._sessions.get(message.session) if message.epoch == self.epoch else None
        if session is not None:
            self._end_session(session, now)
        self._out.send(route, Farewell(message.epoch, message.session))

    def _end_session(self, session: Session, now: float) -> None:
        """The Local holds nothing any more, or has been silent for so long that its lease ended."""
        self._sessions.close(session)
        self._watching.pop(session.id, None)
        self._waits.end(session)  # its bit may become another's
        self._stages.end(session)
        self._writes.confirm(session, self._log.seq, now)

    def _session(self, route: Route, message: Sync | Ack | RequestMessage) -> Session | None:
        """The session that a message names, or None when it has been refused.

        Who knows the id of a session may speak for it, on any connection: a Local's requests come
        over others than its HELLO, and all of them may have been replaced.
        """
        if message.epoch != self.epoch:
            self._out.refuse(route, message, Refusal.OTHER_EPOCH, "this is another life of Global")
            return None
        session = self._sessions.get(message.session)
        if session is None:
            self._out.refuse(route, message, Refusal.UNKNOWN_SESSION, "the session has ended")
        return session

    # ---- reading --------------------------------------------------------------------------

    def _on_get(self, route: Route, message: Get, now: float) -> None:
        session = self._session(route, message)
        if session is None:
            return
        self._out.counters["gets"] += len(message.keys)
        items: list[Found | None] = []
        room = BATCH_BYTES_MAX
        for key in message.keys:
            found = self._read(key, session)
            items.append(found)
            if found is not None:
                room -= found.stored.inline
                if room <= 0:
                    break
        self._out.send(route, GetReply(self.epoch, session.id, message.request, items))

    def _read(self, key: Key, session: Session) -> Found | None:
        seq = self._log.seq  # before the engine is read
        stored = self._engine.read(key)
        if stored is None:
            return None
        if key in self._deletions.pending:
            return Found(seq, False, stored)
        # The engine is read in the same atomic step in which the asker becomes a holder, so
        # that no deletion can begin in between and miss it.
        return Found(seq, self._holders.add(key, session.bit), stored)

    def _on_wait(self, route: Route, message: Wait, now: float) -> None:
        session = self._session(route, message)
        if session is None:
            return
        self.counters["waits"] += 1
        if self._engine.read(message.key) is not None:
            self._answer(session, route, message)
        elif self._waits.full(session, message):
            text = f"too many requests wait, {session.waits.taken:,} bytes of them of this session"
            self._out.refuse(route, message, Refusal.BUSY, text)
        else:
            self._waits.add(session, route, message, now)

    def _answer_waiting(self) -> None:
        """Answer some of those whose keys have been bound; the others in the next steps."""
        room = ANSWERS_BYTES
        while room > 0 and (key := self._waits.answerable()) is not None:
            stored = self._engine.read(key)
            if stored is None:
                self._waits.gone()
            else:
                self._answer(*self._waits.take(key))
                room -= ANSWER_BYTES + stored.inline

    def _on_unwait(self, route: Route, message: Unwait, now: float) -> None:
        session = self._sessions.get(message.session)
        if message.epoch == self.epoch and session is not None:
            self._waits.drop(session, message)

    def _answer(self, session: Session, route: Route, message: Wait) -> None:
        """Answer a WAIT as a GET is."""
        items = [self._read(message.key, session)]
        self._out.send(route, GetReply(self.epoch, session.id, message.request, items))

    def _on_fetch(self, route: Route, message: Fetch, now: float) -> None:
        session = self._session(route, message)
        if session is None:
            return
        data = self._bulk.read(message.token, message.offset, message.length)
        if not data:
            self._out.refuse(route, message, Refusal.GONE, "the value is not here any more")
            return
        self.counters["chunks_out"] += 1
        self.counters["bytes_out"] += len(data)
        envelope = (self.epoch, session.id, message.request)
        self._out.send(route, Chunk(*envelope, message.token, message.offset, data))

    def _on_scan(self, route: Route, message: Scan, now: float) -> None:
        session = self._session(route, message)
        if session is None:
            return
        self.counters["scans"] += 1
        limit = max(1, min(message.limit, KEYS_PER_MESSAGE_MAX))
        keys = self._engine.scan(message.prefix, message.after, limit)
        after = keys[-1] if len(keys) == limit else ""
        self._out.send(route, ScanReply(self.epoch, session.id, message.request, keys, after))

    def _on_stats(self, route: Route, message: Stats, now: float) -> None:
        session = self._session(route, message)
        if session is not None:
            metrics = self.metrics(now)
            self._out.send(route, StatsReply(self.epoch, session.id, message.request, metrics))

    def metrics(self, now: float) -> dict[str, object]:
        """What there is to know about this Global, by name."""
        return {
            "epoch": f"{self.epoch:016x}",
            "keys": len(self._engine),
            "bytes": self._engine.size,
            "bytes_limit": self._engine.limit,
            "value_limit": self._value_limit,
            "large_from": self._large_from,
            "lease": self.lease,
            "seq": self._log.seq,
            "pending": len(self._deletions.pending),
            "sessions": len(self._sessions),
            "held_keys": len(self._holders),
            "waiting": len(self._waits),
            "watching": len(self._watching),
            "uploads": len(self._stages),
            "upload_bytes": self._stages.reserved,
            "expired": self._deletions.expired,
            "holder_bytes": self._holders.bytes,
            "write_bytes": self._sessions.writes.taken,
            "wait_bytes": self._sessions.waits.taken,
            "max_clients": self._max_clients,
            **self.counters,
            **self._metrics_of_locals(now),
        }

    def _metrics_of_locals(self, now: float) -> dict[str, object]:
        """Those that take a look at each Local. No id is among them."""
        sessions = self._sessions
        if now >= self._shown_until or self._shown_of != sessions.state:
            self._shown_of = sessions.state
            self._shown_until = now + SHOWN_PER_LOCAL * len(sessions)
            self._shown = {
                "lapsed": sum(each.lease_end <= now for each in sessions),
                "locals": {
                    str(each.number): {
                        "label": each.label,
                        "lease_left": max(0.0, each.lease_end - now),
                    }
                    for each in islice(sessions, LOCALS_SHOWN)
                },
            }
        return self._shown

    # ---- writing --------------------------------------------------------------------------

    def _on_set(self, route: Route, message: Set, now: float) -> None:
        session = self._session(route, message)
        if session is not None:
            self._writes.set(route, session, message, now)

    def _on_stage(self, route: Route, message: Stage, now: float) -> None:
        session = self._session(route, message)
        if session is None:
            return
        self.counters["chunks_in"] += 1
        self.counters["bytes_in"] += len(message.data)
        token = message.stored.token
        if message.stored.size > self._value_limit:
            self._out.refuse(route, message, Refusal.TOO_LARGE, "the value is too large")
            return
        try:
            received = self._stages.receive(
                session, message, self._writes.room, self._engine.limit, now
            )
        except StageRefused as refused:
            self._out.refuse(route, message, refused.refusal, refused.text)
            return
        envelope = (self.epoch, session.id, message.request)
        self._out.send(route, Staged(*envelope, token, received, self._stages.credit))

    def _on_unstage(self, route: Route, message: Unstage, now: float) -> None:
        session = self._sessions.get(message.session)
        if message.epoch == self.epoch and session is not None:
            self._stages.drop(message.token, session)

    def _on_del(self, route: Route, message: Del, now: float) -> None:
        session = self._session(route, message)
        if session is not None:
            self._writes.delete(route, session, message, now)
