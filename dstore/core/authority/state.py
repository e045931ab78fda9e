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

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from dstore.config import CLIENTS_MAX_DEFAULT
from dstore.core.authority.access import check, keys_of, unseen
from dstore.core.authority.changes import Changes
from dstore.core.authority.deadlines import Deadlines
from dstore.core.authority.effects import NEVER, Alarm, GlobalEffect, Outbox, Refuse
from dstore.core.authority.fetches import Fetches
from dstore.core.authority.host import OwnMembership, Page
from dstore.core.authority.identity import ANYONE, Identity
from dstore.core.authority.invalidations import Invalidations
from dstore.core.authority.loads import Loads
from dstore.core.authority.memberships import Memberships
from dstore.core.authority.partitions import NO_MAP, Partitions
from dstore.core.authority.reads import Reads, Waits
from dstore.core.authority.sessions import Session, Sessions
from dstore.core.authority.stages import Stages
from dstore.core.authority.writes import Writes
from dstore.core.engine import UNLIMITED, Bulk, Engine, Loaded, Outcome
from dstore.protocol import messages as m
from dstore.protocol.clusters import NO_CLUSTER, mark

SWEEP_KEYS = 2_000
"""Keys whose retired holder bits are cleared in one step."""


class GlobalState:
    """The state of a Global during one epoch.

    ``epoch`` is random and names this life of Global; Locals subscribe to broadcasts at
    ``publisher``; ``lease`` is in seconds; the log has the last ``log_length`` invalidations.
    ``alarm`` has the moment at which :meth:`tick` is next due. ``figures_of_host`` returns metrics
    of what the processes of Global's host share, ``figures_of_disk`` those of its disk.
    ``bulk`` has the bytes of large values, which are those of ``large_from`` bytes or more; no
    value may have more than ``value_limit``. ``random63`` returns 63 random bits that cannot be
    guessed. ``max_clients`` sessions are admitted, and a share of these from one host, whose
    address ``peer_of`` returns for a connection. ``wall`` returns the time of the wall clock, by
    which keys expire, in seconds since 1970.
    Where Global is ``durable``, changes leave as :class:`~.effects.Commit` effects, and take place
    when the host reports to :meth:`committed`. Nothing is removed or replaced before
    ``quiet_until``. For values that the engine has to load there are :class:`~.effects.Load`
    effects, and the host reports to :meth:`loaded`.

    A member of a cluster has ``partitions``. Once its ownership lease has ended nothing is
    answered, granted or applied here any more: all events do nothing, and the host ends the epoch.
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
        wall: Callable[[], float],
        max_clients: int = CLIENTS_MAX_DEFAULT,
        peer_of: Callable[[m.Route], str | None] = lambda route: None,
        durable: bool = False,
        quiet_until: float = 0.0,
        partitions: Partitions | None = None,
    ) -> None:
        self.epoch = epoch
        self._partitions = partitions
        self._engine = engine
        welcome = self._welcome = m.Welcome(
            epoch, 0, b"", 0, lease, publisher, value_limit, large_from, 0, durable=durable
        )
        alarm = self.alarm = Alarm()
        out = self._out = Outbox()
        sessions = self._sessions = Sessions(lease, random63)
        holders = self._holders = sessions.holders
        own = self._own = OwnMembership(lease, alarm)
        invalidations = self._invalidations = Invalidations(
            epoch, log_length, sessions, own, out, alarm
        )
        log = self._log = invalidations.log
        changes = self._changes = Changes(out, durable)
        deadlines = self._deadlines = Deadlines(wall, log_length, lease, alarm, partitions)
        stages = self._stages = Stages(engine, bulk, changes, deadlines, value_limit, out, alarm)
        waits = self._waits = Waits(alarm, sessions)
        loads = self._loads = Loads(sessions, out, alarm)
        fetches = self._fetches = Fetches(loads, sessions, out)
        pending = invalidations.pending
        self._reads = Reads(
            epoch,
            engine,
            bulk,
            holders,
            log,
            pending,
            waits,
            loads,
            fetches,
            deadlines,
            out,
            partitions,
        )
        writes = self._writes = Writes(
            epoch,
            engine,
            bulk,
            stages,
            sessions,
            holders,
            invalidations,
            waits,
            changes,
            deadlines,
            out,
            alarm,
            partitions,
            quiet_until,
        )
        self._host: Session | None = None
        self.figures_of_host: Callable[[], dict[str, object]] = dict
        self.figures_of_disk: Callable[[], dict[str, object]] = dict
        self._memberships = Memberships(
            welcome,
            sessions,
            invalidations,
            writes,
            waits,
            stages,
            out,
            alarm,
            max_clients,
            peer_of,
            lambda: self.cluster,
        )
        # These messages are refused unless their session is open; it may be none, or of another
        # identity.
        self._of_readers: dict[type, Callable[..., None]] = {
            m.Get: self._reads.get,
            m.Wait: self._reads.wait,
            m.Offer: self._reads.offer,
            m.Ttl: self._reads.ttl,
            m.Scan: self._reads.scan,
            m.Fetch: self._reads.fetch,
            m.Stats: self._on_stats,
            m.AskMap: self._on_ask_map,
        }
        # These are refused unless their session is open, and of the identity that they come from.
        self._of_writers: dict[type, Callable[..., None]] = {
            m.Set: self._on_set,
            m.Del: self._writes.delete,
            m.Expire: self._writes.expire_keys,
            m.Stage: stages.stage,
        }
        # These are refused unless they have the secret of such a session.
        self._of_owners: dict[type, Callable[..., None]] = {
            m.Sync: self._memberships.sync,
            m.Ack: self._memberships.ack,
        }
        self._others: dict[type, Callable[..., None]] = {
            m.Hello: self._memberships.hello,
            m.Goodbye: self._memberships.goodbye,
            m.Unstage: self._on_withdrawal,
            m.Unwait: self._on_withdrawal,
        }

    def __repr__(self) -> str:
        return f"<GlobalState epoch={self.epoch:x} {self._sessions!r} {self._invalidations!r}>"

    @property
    def cluster(self) -> bytes:
        """The id of the cluster of which this Global is a member; no bytes if it is none."""
        return NO_CLUSTER if self._partitions is None else self._partitions.cluster

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` is next due."""
        return self.alarm.moment

    @property
    def idle(self) -> bool:
        """Whether no Local waits for an answer, and all invalidations are broadcast."""
        to_notify = self._invalidations.pending or len(self._invalidations.broadcasts)
        begun = self._changes or self._loads or self._fetches
        return not to_notify and not begun and self._waits.answerable() is None

    @property
    def writing(self) -> bool:
        """Whether a write, a deletion or an expiry has begun and not ended."""
        return bool(self._invalidations.pending or self._changes)

    @property
    def counters(self) -> dict[str, int]:
        """The counters by name. The host counts malformed frames and cut connections here."""
        return self._out.counters

    # ---- events ---------------------------------------------------------------------------

    def receive(
        self, route: m.Route, message: m.ToGlobal, now: float, identity: Identity = ANYONE
    ) -> list[GlobalEffect]:
        """Handle one message, which comes from ``identity``.

        ``now`` must have been read after the message arrived: a lease that is counted from an
        earlier moment would end here before the Local stops using it.
        """
        if identity.revoked:
            return []
        partitions = self._partitions
        if partitions is not None and partitions.lapsed(now):
            return []
        try:
            kind = type(message)
            if identity is not ANYONE:
                check(identity, message)
            if kind in self._of_readers:
                session = self._reader(message)
                if partitions is not None:
                    partitions.check(keys_of(message))
                self._of_readers[kind](session, route, message, now, identity)
            elif kind in self._of_writers:
                self._of_writers[kind](self._writer(message, now, identity), route, message, now)
            elif kind in self._of_owners:
                self._of_owners[kind](self._owner(message, identity), route, message, now)
            else:
                self._others[kind](route, message, now, identity)
        except Refuse as refuse:
            self._out.refuse(route, message, *refuse.args)
        return self._effects()

    def recover(self, deadlines: Iterable[tuple[m.Key, bytes, float]], now: float) -> None:
        """Take the deadlines that a former life has left: keys, tokens of their values, and times.

        Those that have passed are deleted in the next ticks, a few at a time, among them the
        deletions that were not waited for. The removals follow after ``quiet_until``.
        """
        self._deadlines.load(deadlines, now)

    def gain(
        self,
        numbers: Iterable[int],
        deadlines: Iterable[tuple[m.Key, bytes, float]],
        quiet_until: float,
        now: float,
    ) -> list[GlobalEffect]:
        """Serve further partitions, whose keys are in the engine; ``deadlines`` as for recover.

        Nothing in them is removed or replaced before ``quiet_until``. Raises ValueError if this
        Global is no member of a cluster.
        """
        if self._partitions is None:
            raise ValueError("this GlobalState has no partitions: it serves all keys")
        if self._lapsed(now):
            return []
        self._partitions.gain(numbers, quiet_until)
        self.recover(deadlines, now)
        return self._effects()

    def _lapsed(self, now: float) -> bool:
        """Whether nothing is to be done any more, since the ownership lease has ended."""
        return self._partitions is not None and self._partitions.lapsed(now)

    def committed(self, number: int, outcomes: Iterable[Outcome], now: float) -> list[GlobalEffect]:
        """Apply the changes of a batch that has become durable, and answer their writers."""
        if self._lapsed(now):
            return []
        self._changes.committed(number, outcomes, now)
        self._writes.complete(self._invalidations.notify(now), now)
        self._reads.answer_bound(now)
        return self._effects()

    def loaded(self, number: int, results: Sequence[Loaded], now: float) -> list[GlobalEffect]:
        """Take what the engine has loaded, and answer the requests that waited for it.

        ``results`` has the bytes, or an exception, for each value of the load with this number.
        Raises KeyError if there is no such load.
        """
        if self._lapsed(now):
            return []
        if not self._reads.part_loaded(number, results):
            self._loads.ended(number, results)
            self._reads.answer_loaded()
        return self._effects()

    def _effects(self) -> list[GlobalEffect]:
        self._changes.emit()
        return self._out.take()

    def revoke(self, identity: Identity, now: float) -> list[GlobalEffect]:
        """Take nothing from an identity any more, and send it nothing. Idempotent.

        Its sessions lapse: what they hold is waited for until their leases end. Its writes that
        queue are not executed; a deletion that has begun goes on.
        """
        identity.revoked = True
        if self._lapsed(now):
            return []
        self._waits.revoke(identity)
        self._memberships.revoke(identity, now)
        return self._effects()

    def conceal(self) -> None:
        """From now on broadcast nothing that names keys. Never undone; idempotent.

        To be called before the first identity that does not see all keys is admitted.
        """
        self._invalidations.conceal()

    def sessions_by_identity(self) -> Counter[Identity]:
        """Return how many sessions each identity has open, in one pass over all of them."""
        return Counter(each.identity for each in self._sessions)

    def read(self, message: m.Get, now: float, identity: Identity = ANYONE) -> m.GetReply | None:
        """Return the reply to a GET, which is all that :meth:`receive` would do with it.

        Returns None, and does nothing, if it names no open session, or a key that ``identity`` does
        not see or that is not owned, or has to wait until the engine has loaded a value: that is
        for ``receive``. ``now`` must have been read after the message arrived.
        """
        partitions = self._partitions
        if partitions is not None and (
            partitions.lapsed(now) or not all(map(partitions.owns, message.keys))
        ):
            return None
        session = self._sessions.get(message.session)
        if session is None or message.epoch != self.epoch:
            return None
        if identity is not ANYONE and (identity.revoked or unseen(identity, message.keys)):
            return None
        reply = self._reads.reply(session, message.request, message.keys)
        if reply is not None:
            self._out.counters["gets"] += len(message.keys)
        return reply

    def _session(self, message: Any) -> Session:
        """Return the session that a request names by its id, or raise Refuse.

        A peer that knows the id of a session may ask for it on any connection: a Local sends
        requests over other connections than its HELLO, and all of them may have been replaced.
        """
        return self._open(message.epoch, self._sessions.get(message.session))

    def _reader(self, message: Any) -> Session | None:
        """Return the session that a request names by its id, None if it names none, or raise.

        Without a session the epoch may be a mark: a request for members of a cluster alone.
        """
        if message.session != m.NO_SESSION:
            return self._session(message)
        if message.epoch not in (0, self.epoch, mark(self.cluster)):
            text = "Global has another epoch, and is no member of the cluster that is asked"
            raise Refuse(m.Refusal.OTHER_EPOCH, text)
        return None

    def _writer(self, message: Any, now: float, identity: Identity) -> Session:
        """Return the session in whose name a message writes or uploads, or raise Refuse.

        It belongs to the identity that the message comes from, and is not that of Global's own
        host, which belongs to all processes there: two of them would use the same number for
        different writes, and one would end the outcomes of another.
        """
        session = self._sessions.get(message.session)
        if session is not None and session.identity is not identity:
            session = None
        session = self._open(message.epoch, session)
        if session is self._host:
            raise Refuse(m.Refusal.BAD_MESSAGE, "to write, a process needs a session of its own")
        self._sessions.heard(session, now)
        return session

    def _owner(self, message: Any, identity: Identity) -> Session:
        """Return the session that a message names by its secret, or raise Refuse."""
        return self._open(message.epoch, self._sessions.by_secret(message.secret, identity))

    def _open(self, epoch: int, session: Session | None) -> Session:
        if epoch != self.epoch:
            raise Refuse(m.Refusal.OTHER_EPOCH, "Global has restarted: its epoch is another")
        if session is None:
            raise Refuse(m.Refusal.UNKNOWN_SESSION, "the session has ended")
        return session

    # ---- Global's own host ----------------------------------------------------------------

    def open_host(self, now: float, label: str) -> int:
        """Open the session of Global's own host. Returns its id; :meth:`share` follows.

        The former one ends: its page is void.
        """
        self.close_host(now)
        host = self._host = self._own.session = self._memberships.open_own(label)
        return host.id

    def share(self, page: Page, now: float) -> None:
        """Let the processes of this host use a page, in the session that was opened last.

        When the ownership lease has ended the page is not used: it gets no lease, and is void.
        """
        assert self._host is not None
        if self._lapsed(now):
            with contextlib.suppress(Exception):  # nobody would answer from it anyway
                page.void()
            return
        self._own.begin(page, now)

    def close_host(self, now: float) -> None:
        """Void the page and end the session of this host. Idempotent."""
        self._own.end(now)
        host, self._host = self._host, None
        if host is not None:
            self._own.session = None
            self._memberships.end_own(host, now)

    def lease_out(self, now: float) -> bool:
        """Whether a membership may answer from its cache now. That of this host must be closed."""
        return self._own.trusted(now) or any(each.lease_end > now for each in self._sessions)

    @property
    def host_lost(self) -> bool:
        """Whether the session of this host has no page that can be written.

        After a failure a new page of a new session is needed.
        """
        return self._host is not None and self._own.lost

    def tick(self, now: float) -> list[GlobalEffect]:
        """Do what is due at this moment."""
        if self._lapsed(now):
            self.alarm.moment = NEVER
            return []
        if now >= self._own.wake_at:
            self._own.tick(now)
        self._writes.expire(now)
        self._writes.expire_due(now)
        self._stages.expire(now)
        self._invalidations.remind(now)
        self._memberships.drop_silent(now)
        self._invalidations.broadcast_due(now)
        self._holders.sweep(SWEEP_KEYS)
        self._loads.expire(now)
        self._reads.answer_loaded()
        self._reads.expire(now)
        self._reads.answer_bound(now)
        self.alarm.moment = self._next_moment(now)
        return self._effects()

    def _next_moment(self, now: float) -> float:
        if self._holders.sweeping:
            return now
        return min(
            self._writes.wake_at(now),
            self._deadlines.wake_at,
            self._own.wake_at,
            self._memberships.wake_at,
            self._invalidations.wake_at,
            self._stages.wake_at,
            self._waits.wake_at,
            self._loads.wake_at,
        )

    def deadlines(self) -> Iterator[tuple[m.Key, bytes, float]]:
        """Return the keys that expire, the tokens of their values, and when; see :meth:`recover`.

        If nothing is being written these are all that there are. For the end of an epoch: nothing
        may happen before all were taken.
        """
        return self._deadlines.records()

    def end(self) -> list[GlobalEffect]:
        """End this epoch: refuse the reads that wait, so that their Locals ask again at once.

        Nothing may be called after that. Allowed at any time, also when the ownership lease has
        ended. Writes are not answered: it is not said that they were not executed.
        """
        parked = [*self._waits.waiting(), *self._loads.waiting(), *self._fetches.waiting()]
        for route, message in parked:
            self._out.refuse(route, message, m.Refusal.OTHER_EPOCH, "this epoch of Global ends")
        return self._out.take()

    def close(self) -> None:
        """From now on refuse new sessions and writes. What has started goes on."""
        self._memberships.closing = self._writes.closing = True
        self._invalidations.broadcasts.close()

    def hold_writes(self) -> None:
        """Refuse writes until :meth:`take_writes`. What has started goes on, and so do reads.

        A member of a cluster refuses them for good, so that their Locals can make them elsewhere.
        """
        self._writes.closing = True

    def take_writes(self, now: float) -> None:
        """Take writes again, after :meth:`hold_writes`."""
        self._writes.closing = False
        self._deadlines.look(now)

    # ---- handlers -------------------------------------------------------------------------

    def _on_withdrawal(
        self, route: m.Route, message: m.Unwait | m.Unstage, now: float, identity: Identity
    ) -> None:
        # These messages are not answered.
        if message.epoch != self.epoch and message.session != m.NO_SESSION:
            return
        if isinstance(message, m.Unwait):
            self._waits.drop(message, identity)
            self._loads.drop(message, identity)
            return
        session = self._sessions.get(message.session)
        if session is not None and session.identity is identity:
            self._stages.drop(message.token, session)

    def _on_set(self, session: Session, route: m.Route, message: m.Set, now: float) -> None:
        self._writes.set(session, route, message, now)
        self._reads.answer_bound(now)

    def _on_stats(
        self,
        session: Session | None,
        route: m.Route,
        message: m.Stats,
        now: float,
        identity: Identity,
    ) -> None:
        metrics = self.metrics(now, identity)
        self._out.send(route, m.StatsReply(self.epoch, *message[1:3], metrics))

    def _on_ask_map(
        self,
        session: Session | None,
        route: m.Route,
        message: m.AskMap,
        now: float,
        identity: Identity,
    ) -> None:
        version, members, owners = NO_MAP if self._partitions is None else self._partitions.map
        envelope = self.epoch, message.session, message.request
        reply = m.MapReply(*envelope, version, members, owners, self.cluster)
        self._out.send(route, reply)

    def metrics(self, now: float, identity: Identity = ANYONE) -> dict[str, object]:
        """Return the metrics of this Global, by name, as an identity may see them."""
        return {
            "epoch": f"{self.epoch:016x}",
            "keys": len(self._engine),
            "bytes": self._engine.size + self._deadlines.bytes,
            "bytes_limit": None if self._engine.limit >= UNLIMITED else self._engine.limit,
            "value_limit": self._stages.value_limit,
            "large_from": self._welcome.large_from,
            "lease": self._welcome.lease,
            "seq": self._log.seq,
            "pending": len(self._invalidations.pending),
            "uncommitted": len(self._changes),
            "deadlines": len(self._deadlines),
            "held_keys": len(self._holders),
            "waiting": len(self._waits),
            "loading": len(self._loads) + len(self._fetches),
            "watching": self._invalidations.watchers,
            "uploads": len(self._stages),
            "upload_bytes": self._stages.reserved,
            "expired": self._invalidations.acknowledgements.expired,
            "holder_bytes": self._holders.bytes,
            "write_bytes": self._sessions.writes.taken,
            "wait_bytes": self._sessions.waits.taken,
            "load_bytes": self._sessions.loads.taken,
            "max_clients": self._memberships.max_clients,
            **self.figures_of_host(),
            **self.figures_of_disk(),
            **self.counters,
            **self._sessions.metrics(now, identity),
        }
