"""What Global does with each event: the authority's half of the coherence protocol.

This is a pure state machine: messages and the time go in, effects come out, and nothing waits. The
host carries out the effects in their order. Every call is atomic with respect to every other, the
engine included.

The work is done in the modules beside this one: :mod:`~dstore.core.authority.memberships` has
sessions and leases, :mod:`~dstore.core.authority.reads` answers what changes no key,
:mod:`~dstore.core.authority.writes` binds and deletes, and
:mod:`~dstore.core.authority.invalidations` notifies Locals of deletions. ``docs/protocol.md`` has
the rules, and what goes wrong without each of them.
"""

from __future__ import annotations

from collections.abc import Callable

from dstore.config import CLIENTS_MAX_DEFAULT
from dstore.core.authority.alarm import Alarm
from dstore.core.authority.effects import GlobalEffect
from dstore.core.authority.invalidations import Invalidations
from dstore.core.authority.memberships import Memberships
from dstore.core.authority.metrics import LocalMetrics
from dstore.core.authority.outbox import Outbox
from dstore.core.authority.reads import Reads
from dstore.core.authority.sessions import Session, Sessions
from dstore.core.authority.space import Space
from dstore.core.authority.stages import StageRefused, Stages
from dstore.core.authority.waits import Waits
from dstore.core.authority.writes import Writes
from dstore.core.engine import Bulk, Engine
from dstore.protocol.messages import (
    Ack,
    Del,
    Fetch,
    Get,
    Goodbye,
    Hello,
    Refusal,
    RequestMessage,
    Route,
    Scan,
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

SWEEP_KEYS = 2_000
"""Keys whose retired holder bits are cleared in one step."""


class GlobalState:
    """The state of a Global during one epoch.

    ``epoch`` is random and names this incarnation; Locals subscribe to broadcasts at
    ``publisher``; ``lease`` is in seconds; the log has the last ``log_length`` invalidations.
    ``bulk`` has the bytes of large values, which are those of ``large_from`` bytes or more; no
    value may have more than ``value_limit``. ``random63`` returns 63 random bits that cannot be
    guessed. ``max_clients`` sessions are admitted, and a share of these from one host, whose
    address ``peer_of`` returns for a connection.
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
        self._engine = engine
        self._publisher = publisher
        self._value_limit = value_limit
        self._large_from = large_from
        self._alarm = Alarm()
        self._out = Outbox()
        self._sessions = Sessions(lease, random63)
        self._holders = self._sessions.holders
        self._invalidations = Invalidations(
            epoch, log_length, self._sessions, self._out, self._alarm
        )
        self._log = self._invalidations.log
        self._stages = Stages(bulk, self._alarm)
        self._space = Space(engine, bulk, self._stages, value_limit)
        self._waits = Waits(self._alarm)
        self._reads = Reads(
            epoch, engine, bulk, self._sessions, self._invalidations, self._waits, self._out
        )
        self._writes = Writes(
            epoch,
            engine,
            bulk,
            self._stages,
            self._space,
            self._sessions,
            self._invalidations,
            self._waits,
            self._out,
        )
        self._memberships = Memberships(
            epoch,
            self._sessions,
            self._invalidations,
            self._writes,
            self._waits,
            self._stages,
            self._out,
            self._alarm,
            self._welcome,
            max_clients,
            peer_of,
        )
        self._local_metrics = LocalMetrics(self._sessions)
        # These messages are refused unless their session is open.
        self._of_sessions: dict[type, Callable[..., None]] = {
            Get: self._reads.get,
            Wait: self._reads.wait,
            Scan: self._reads.scan,
            Fetch: self._reads.fetch,
            Stats: self._on_stats,
            Sync: self._memberships.sync,
            Ack: self._memberships.ack,
            Set: self._on_set,
            Del: self._writes.delete,
            Stage: self._on_stage,
        }
        self._others: dict[type, Callable[..., None]] = {
            Hello: self._memberships.hello,
            Goodbye: self._memberships.goodbye,
            Unstage: self._on_unstage,
            Unwait: self._on_unwait,
        }

    def __repr__(self) -> str:
        return f"<GlobalState epoch={self.epoch:x} {self._sessions!r} {self._invalidations!r}>"

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` is next due."""
        return self._alarm.moment

    @property
    def idle(self) -> bool:
        """Whether no Local waits for an answer, and all invalidations are broadcast."""
        return self._invalidations.idle and self._waits.answerable() is None

    @property
    def counters(self) -> dict[str, int]:
        """How often things have happened. The host counts malformed frames and cuts here."""
        return self._out.counters

    # ---- events ---------------------------------------------------------------------------

    def receive(self, route: Route, message: ToGlobal, now: float) -> list[GlobalEffect]:
        """Handle one message.

        ``now`` must have been read after the message arrived: a lease that is counted from an
        earlier moment would end here before the Local stops using it.
        """
        handler = self._of_sessions.get(type(message))
        if handler is None:
            self._others[type(message)](route, message, now)
            return self._out.take()
        session = self._session(route, message)  # type: ignore[arg-type]  # it is one of these
        if session is not None:
            handler(session, route, message, now)
        return self._out.take()

    def _session(self, route: Route, message: Sync | Ack | RequestMessage) -> Session | None:
        """Return the session that a message names, or None after refusing the message.

        A peer that knows the id of a session may speak for it on any connection: a Local sends
        requests over other connections than its HELLO, and all of them may have been replaced.
        """
        if message.epoch != self.epoch:
            self._out.refuse(
                route, message, Refusal.OTHER_EPOCH, "Global has restarted: its epoch is another"
            )
            return None
        session = self._sessions.get(message.session)
        if session is None:
            self._out.refuse(route, message, Refusal.UNKNOWN_SESSION, "the session has ended")
        return session

    def tick(self, now: float) -> list[GlobalEffect]:
        """Do what is due at this moment."""
        self._writes.expire(now)
        self._stages.expire(now)
        self._invalidations.remind(now)
        self._memberships.drop_silent(now)
        self._invalidations.broadcast_due(now)
        self._holders.sweep(SWEEP_KEYS)
        self._reads.expire(now)
        self._reads.answer_bound()
        self._alarm.moment = self._next_moment(now)
        return self._out.take()

    def _next_moment(self, now: float) -> float:
        if self._holders.sweeping:
            return now
        return min(
            self._memberships.wake_at,
            self._invalidations.wake_at,
            self._stages.wake_at,
            self._waits.wake_at,
        )

    def close(self) -> None:
        """From now on refuse new sessions and writes. What has started goes on."""
        self._memberships.closing = self._writes.closing = True
        self._invalidations.broadcasts.close()

    # ---- handlers -------------------------------------------------------------------------

    def _welcome(self, session: Session, seq: int) -> Welcome:
        return Welcome(
            self.epoch,
            session.id,
            session.nonce,
            seq,
            self.lease,
            self._publisher,
            self._value_limit,
            self._large_from,
        )

    def _on_unwait(self, route: Route, message: Unwait, now: float) -> None:
        session = self._sessions.get(message.session)
        if message.epoch == self.epoch and session is not None:
            self._waits.drop(session, message)

    def _on_set(self, session: Session, route: Route, message: Set, now: float) -> None:
        self._writes.set(session, route, message, now)
        self._reads.answer_bound()

    def _on_stage(self, session: Session, route: Route, message: Stage, now: float) -> None:
        self.counters["chunks_in"] += 1
        self.counters["bytes_in"] += len(message.data)
        if message.stored.size > self._value_limit:
            self._out.refuse(route, message, Refusal.TOO_LARGE, "the value is too large")
            return
        try:
            received = self._stages.receive(
                session, message, self._space.room, self._engine.limit, now
            )
        except StageRefused as refused:
            self._out.refuse(route, message, refused.refusal, refused.text)
            return
        envelope = (self.epoch, session.id, message.request)
        staged = Staged(*envelope, message.stored.token, received, self._stages.credit)
        self._out.send(route, staged)

    def _on_unstage(self, route: Route, message: Unstage, now: float) -> None:
        session = self._sessions.get(message.session)
        if message.epoch == self.epoch and session is not None:
            self._stages.drop(message.token, session)

    def _on_stats(self, session: Session, route: Route, message: Stats, now: float) -> None:
        metrics = self.metrics(now)
        self._out.send(route, StatsReply(self.epoch, session.id, message.request, metrics))

    def metrics(self, now: float) -> dict[str, object]:
        """Return what is known about this Global, by name."""
        return {
            "epoch": f"{self.epoch:016x}",
            "keys": len(self._engine),
            "bytes": self._engine.size,
            "bytes_limit": self._engine.limit,
            "value_limit": self._value_limit,
            "large_from": self._large_from,
            "lease": self.lease,
            "seq": self._log.seq,
            "pending": len(self._invalidations.pending),
            "sessions": len(self._sessions),
            "held_keys": len(self._holders),
            "waiting": len(self._waits),
            "watching": self._invalidations.watching,
            "uploads": len(self._stages),
            "upload_bytes": self._stages.reserved,
            "expired": self._invalidations.expired,
            "holder_bytes": self._holders.bytes,
            "write_bytes": self._sessions.writes.taken,
            "wait_bytes": self._sessions.waits.taken,
            "max_clients": self._memberships.max_clients,
            **self.counters,
            **self._local_metrics.get(now),
        }
