"""How Global binds, replaces and deletes: each write once, each deletion in two phases.

In phase 1 the key becomes *pending*: the deletion gets its number and the holders are notified. The
engine still has the value, and the reply to a reader says "do not cache". In phase 2, when every
holder has acknowledged that number or its lease, as it stood in phase 1, has run out, the deletion
is *committed*: the value is removed and the deleter is answered. If the value were removed first,
one client could read "missing" while another, later, still reads the old value from its cache.

A SET of a pending key, with or without replace, depends on the state after the removal: it queues
and is executed then. A second DEL joins the wait, and its outcome is then that the key is missing.
A replacement is a deletion whose removal and new value are one step. There is no moment between the
two at which the key is missing. So a DEL of a key that is being replaced queues too, and deletes
the new value.

A SET names a large value by its token. If the bytes are not here yet the outcome says so (ABSENT);
the Local uploads them and asks again; see :mod:`dstore.core.authority.stages`.

A key with a deadline that has passed *expires*: Global deletes it by itself, as if a DEL had come
that needs no answer. If something is under way on the key, the expiry queues behind it, and takes
place only if the key has the same value and the same deadline then. A SET or an EXPIRE that meets a
passed deadline begins the expiry and queues behind it, and a deletion that is not waited for is a
deadline that has passed. See :mod:`dstore.core.authority.deadlines`.

Where a journal makes changes durable, each change goes through it before the engine changes and
before anything is answered; see :mod:`dstore.core.authority.changes`. After a restart nothing is
removed or replaced before the leases that a former life has granted are over (``quiet_until``):
their Locals may answer from their caches until then, and none of them can acknowledge. In a cluster
the same holds for each partition whose former owner has granted leases; other partitions go on.

A write that names a key of a partition that is not owned is not executed, and neither is any copy
of it that comes later, even if the partition is owned by then. So its Local may write to the owner.
The same holds for all writes while partitions are being handed over.

A write of an identity that was revoked is not answered. If it queues it is not executed when its
turn comes; a deletion that has begun goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush

from dstore.config import OUTCOMES_MAX, WRITES_BYTES_SHARE
from dstore.core.authority.access import keys_of
from dstore.core.authority.acknowledgements import PendingDeletion
from dstore.core.authority.budgets import text_bytes
from dstore.core.authority.changes import Changes, Execute
from dstore.core.authority.deadlines import Deadline, Deadlines
from dstore.core.authority.effects import NEVER, Alarm, Outbox, Refuse
from dstore.core.authority.holders import Holders
from dstore.core.authority.invalidations import Invalidations
from dstore.core.authority.partitions import Partitions
from dstore.core.authority.reads import Waits
from dstore.core.authority.sessions import (
    NOT_EXECUTED,
    WRITE_BYTES,
    WRITE_ITEM_BYTES,
    ActiveWrite,
    Session,
    Sessions,
    repeated,
)
from dstore.core.authority.stages import Stages
from dstore.core.engine import NO_DEADLINE, Away, Bound, Bulk, Change, ChangeKind, Engine, Outcome
from dstore.errors import DstoreError, StoreFull
from dstore.protocol.messages import (
    NO_SESSION,
    Del,
    DelReply,
    DelResult,
    DelStatus,
    Expire,
    ExpireReply,
    ExpireStatus,
    Found,
    Key,
    Large,
    Refusal,
    Route,
    Set,
    SetItem,
    SetReply,
    SetResult,
    SetStatus,
    WriteMessage,
    WriteReply,
    WriteResult,
)

PASSED = 0.0
"""A deadline that has passed: the value is to be removed in any case."""
COMMITS_MAX = 200
"""Expiries that end in one step of Global; others end in the next steps, so that messages that come
meanwhile have their turn. Thousands may wait for one lease, or for the quiet period.
"""
_REFUSED = {Outcome.FULL: SetStatus.FULL, Outcome.FAILED: SetStatus.FAILED}
_EXPIRE_REFUSED = {Outcome.FULL: ExpireStatus.FULL, Outcome.FAILED: ExpireStatus.FAILED}
_REPLY: dict[type[WriteMessage], type[WriteReply]] = {
    Set: SetReply,
    Del: DelReply,
    Expire: ExpireReply,
}


@dataclass(eq=False, repr=False)
class Writes:
    """The writing half of :class:`~dstore.core.authority.state.GlobalState`."""

    _epoch: int
    _engine: Engine
    _bulk: Bulk
    _stages: Stages
    _sessions: Sessions
    _holders: Holders
    _invalidations: Invalidations
    _waits: Waits
    _changes: Changes
    _deadlines: Deadlines
    _out: Outbox
    _alarm: Alarm
    _partitions: Partitions | None
    quiet_until: float = 0.0
    closing: bool = False
    _completed: deque[PendingDeletion] = field(default_factory=deque)  # to be committed
    _more: bool = False  # some of these were left to the next step, for their number alone
    # Those that wait until their partition is not quiet any more: a heap, by that moment.
    _quiet: list[tuple[float, int, PendingDeletion]] = field(default_factory=list)

    # ---- one message ----------------------------------------------------------------------

    def set(self, session: Session, route: Route, message: Set, now: float) -> None:
        """Execute a SET. Its reply may come in a later event."""
        size = sum([text_bytes(item.key) + item.stored.inline for item in message.items])
        write = self._admit(session, route, message, len(message.items), size)
        if write is not None:
            self._out.counters["sets"] += len(message.items)
            try:
                for index, item in enumerate(message.items):
                    self._set(write, index, item, message.replace, now)
            finally:  # the deletions that have started go on, even if the engine raises
                self.complete(self._invalidations.notify(now), now)

    def delete(self, session: Session, route: Route, message: Del, now: float) -> None:
        """Execute a DEL. Its reply may come in a later event."""
        size = sum(map(text_bytes, message.keys))
        write = self._admit(session, route, message, len(message.keys), size)
        if write is not None:
            self._out.counters["dels"] += len(message.keys)
            try:
                for index, key in enumerate(message.keys):
                    self._delete(write, index, key, message.wait, now)
            finally:
                self.complete(self._invalidations.notify(now), now)

    def expire_keys(self, session: Session, route: Route, message: Expire, now: float) -> None:
        """Execute an EXPIRE. Its reply may come in a later event."""
        size = sum(map(text_bytes, message.keys))
        write = self._admit(session, route, message, len(message.keys), size)
        if write is not None:
            self._out.counters["expires"] += len(message.keys)
            try:
                for index, key in enumerate(message.keys):
                    self._set_deadline(write, index, key, now)
            finally:
                self.complete(self._invalidations.notify(now), now)

    def _admit(
        self, session: Session, route: Route, message: WriteMessage, count: int, size: int
    ) -> ActiveWrite | None:
        """Return the write to execute, or None if it is a repeat. Raises Refuse.

        It has ``count`` items, with ``size`` bytes of keys and values.
        """
        session.forget_outcomes(message.seen)
        known = session.outcomes.get(message.write)
        if known is not None and not isinstance(known, bytes):
            # It is active: its reply goes to where its latest repeat came from.
            known.route, known.request = route, message.request
            return None
        if known == NOT_EXECUTED:
            raise Refuse(Refusal.NOT_MINE, "this write was refused before, and is not executed")
        if known is not None:
            self._out.send(route, repeated(known, message[:3]))
            return None
        cost = WRITE_BYTES + count * WRITE_ITEM_BYTES + size
        self._check_admission(session, message, cost)
        write = ActiveWrite(
            route,
            message.request,
            session,
            self._holder(session, message),
            message.write,
            _REPLY[type(message)],
            cost,
            count,
            None if isinstance(message, Del) else message.ttl,
        )
        session.writes.take(cost)
        session.outcomes[message.write] = write
        return write

    def _holder(self, session: Session, message: WriteMessage) -> Session | None:
        """Return the session that may cache the values of a SET."""
        if type(message) is not Set or message.holder == NO_SESSION:
            return None
        return session if message.holder == session.id else self._sessions.get(message.holder)

    def _check_admission(self, session: Session, message: WriteMessage, cost: int) -> None:
        if message.write < session.seen:
            raise Refuse(Refusal.STALE_WRITE, "its sender has given it up")
        if len(session.outcomes) >= OUTCOMES_MAX:
            text = f"{OUTCOMES_MAX:,} writes of this session wait to be seen"
            raise Refuse(Refusal.BUSY, text)
        if not session.writes.admits(cost):
            text = f"too many writes wait, {session.writes.taken:,} bytes of them of this session"
            raise Refuse(Refusal.BUSY, text)
        if self._partitions is not None:
            try:
                self._partitions.check(keys_of(message))
                if self.closing:
                    raise Refuse(Refusal.NOT_MINE, "it hands partitions over, and takes no writes")
            except Refuse:
                session.record_not_executed(message.write)
                raise
        if self.closing:
            raise Refuse(Refusal.CLOSING, "Global is shutting down")

    def _finish(self, write: ActiveWrite, index: int, result: WriteResult) -> None:
        """Record the outcome of one item. When it was the last one, send the reply."""
        if write.note(index, result):
            reply = write.reply(self._epoch)
            if not write.session.identity.revoked:
                self._out.send(write.route, reply)
            write.session.record(write, reply)

    def _is_revoked(self, write: ActiveWrite, index: int) -> bool:
        """End an item whose identity was revoked while it queued. Returns whether that was so."""
        if not write.session.identity.revoked:
            return False
        self._finish(write, index, self._not_executed(write))
        return True

    def _not_executed(self, write: ActiveWrite) -> WriteResult:
        seq = self._invalidations.log.seq
        if write.kind is ExpireReply:
            return ExpireStatus.FAILED
        if write.kind is DelReply:
            return DelResult(DelStatus.FAILED, seq)
        return SetResult(SetStatus.FAILED, seq)

    # ---- binding --------------------------------------------------------------------------

    def _set(
        self, write: ActiveWrite, index: int, item: SetItem, replace: bool, now: float
    ) -> None:
        if self._is_revoked(write, index):
            return
        queue = self._queue(item.key) if replace else self._queue_of_living(item.key, now)
        if queue is not None:
            queue.append(partial(self._set, write, index, item, replace))
            return
        old = self._engine.read(item.key)
        limited = write.ttl is not None
        if old is not None and not replace:
            if self._prolongs(write, item.key):
                self._prolong(write, index, item, old, now)
                return
            result = self._occupied(write, item.key, old)
        elif (refusal := self._stages.claim(write.session, item, old, limited)) is not None:
            result = SetResult(refusal, self._invalidations.log.seq)
        elif old is None:
            deadline = self._deadlines.after(write.ttl)
            change = Change(ChangeKind.BIND, item.key, b"", item.stored, deadline)
            then = partial(self._bind, write, index, item, deadline)
            self._changes.submit(change, then, now, busy=True)
            return
        else:
            pending = PendingDeletion(item.key, old, write, index, write.session.writes)
            self._stages.begin_replacement(pending, item.stored)
            self._invalidations.start(pending, now)
            return
        self._end_set(write, index, item, result)

    def _end_set(self, write: ActiveWrite, index: int, item: SetItem, result: SetResult) -> None:
        """End the SET of an item that is not bound."""
        if result.status is not SetStatus.ABSENT and type(item.stored.body) is Large:
            self._stages.drop(item.stored.token, write.session)
        self._finish(write, index, result)

    def _queue(self, key: Key) -> list[Execute] | None:
        """Return where a write of ``key`` has to queue, or None if it need not."""
        pending = self._invalidations.pending.get(key)
        return self._changes.busy.get(key) if pending is None else pending.queued

    def _queue_of_living(self, key: Key, now: float) -> list[Execute] | None:
        """Do what :meth:`_queue` does, and begin the expiry of a key whose deadline has passed."""
        queue = self._queue(key)
        if queue is None and (record := self._deadlines.passed(key)) is not None:
            self._expire(record, now)
            queue = self._queue(key)
        return queue

    def _bind(
        self,
        write: ActiveWrite,
        index: int,
        item: SetItem,
        deadline: float,
        outcome: Outcome,
        now: float,
    ) -> None:
        """Bind a value, once that is durable."""
        seq = self._invalidations.log.seq
        status = _REFUSED.get(outcome)
        if status is None:
            try:
                self._engine.bind(item.key, item.stored)
            except DstoreError as error:
                if self._changes.durable:  # what is on the disk is not in memory: Global has to end
                    raise
                status = SetStatus.FULL if isinstance(error, StoreFull) else SetStatus.FAILED
        if status is None:
            self._deadlines.set(item.key, item.stored.token, deadline, now)
            self._waits.bound(item.key)
            cacheable = self._hold(item.key, write.holder)
            self._finish(write, index, SetResult(SetStatus.STORED, seq, cacheable))
            return
        self._stages.release(item.stored)
        self._finish(write, index, SetResult(status, seq))

    def _occupied(self, write: ActiveWrite, key: Key, old: Bound) -> SetResult:
        seq = self._invalidations.log.seq
        found = None
        if isinstance(old, Away) or type(old.body) is Large:
            return SetResult(SetStatus.OCCUPIED, seq)  # its bytes can be asked for
        if write.reserve(old.inline) and self._hold(key, write.holder):
            found = Found(seq, True, old)
        return SetResult(SetStatus.OCCUPIED, seq, found=found)

    def _prolongs(self, write: ActiveWrite, key: Key) -> bool:
        """Whether a SET of a key that is bound makes it live longer: a PUT does."""
        if key not in write.session.identity.addresses:
            return False
        old = self._deadlines.of(key)
        return old != NO_DEADLINE and old < self._deadlines.after(write.ttl)

    def _prolong(
        self, write: ActiveWrite, index: int, item: SetItem, old: Bound, now: float
    ) -> None:
        """Answer a PUT of an address that is bound when it lives as long as was asked for."""

        def prolonged(outcome: Outcome, now: float) -> None:
            if outcome:
                result = SetResult(_REFUSED[outcome], self._invalidations.log.seq)
            else:
                self._deadlines.set(item.key, old.token, deadline, now)
                result = self._occupied(write, item.key, old)
            self._end_set(write, index, item, result)

        deadline = self._deadlines.after(write.ttl)
        change = Change(ChangeKind.DEADLINE, item.key, old.token, deadline=deadline)
        self._changes.submit(change, prolonged, now, busy=True)

    def _hold(self, key: Key, session: Session | None) -> bool:
        """Make the session of the writer a holder. Returns whether the value may be cached there.

        It may not if the record of holders has no room, if the identity of the session does not
        see the key, or if the session has ended while the write was queued: its bit may belong to
        another session by now.
        """
        if session is None or not session.may_hold(key):
            return False
        return self._holders.add(key, session.bit)

    # ---- deleting, phase 1 ----------------------------------------------------------------

    def _delete(self, write: ActiveWrite, index: int, key: Key, wait: bool, now: float) -> None:
        if self._is_revoked(write, index):
            return
        pending = self._invalidations.pending.get(key)
        if pending is None:
            busy = self._changes.busy.get(key)
            if busy is not None:
                busy.append(partial(self._delete, write, index, key, wait))
                return
            stored = self._engine.read(key)
            if stored is None:
                result = DelResult(DelStatus.MISSING, self._invalidations.log.seq)
                self._finish(write, index, result)
                return
            pending = PendingDeletion(key, stored, write, index, write.session.writes)
            self._invalidations.start(pending, now)
            if not wait:
                pending.write = None
                self._doom(pending, write, index, now)
        elif pending.replacement is not None:
            pending.queued.append(partial(self._delete, write, index, key, wait))
        elif wait or pending.submitted:
            pending.joined.append((write, index))
        else:
            self._doom(pending, write, index, now)

    def _doom(self, pending: PendingDeletion, write: ActiveWrite, index: int, now: float) -> None:
        """Answer a DEL that does not wait, once the deletion survives a crash; else it waits."""
        first = pending.write is None and not pending.doomed
        pending.doomed = True
        change = Change(ChangeKind.DEADLINE, pending.key, pending.token, deadline=PASSED)

        def doomed(outcome: Outcome, now: float) -> None:
            result = _pending(pending)
            if outcome:
                if self._invalidations.pending.get(pending.key) is pending:
                    if pending.write is None and first:
                        pending.write, pending.index = write, index
                    else:
                        pending.joined.append((write, index))
                    return
                bound = self._engine.read(pending.key)
                if bound is not None and bound.token == pending.token:
                    result = DelResult(DelStatus.FAILED, pending.seq)
            else:  # its removal follows; should that fail, it is tried again
                self._deadlines.set(pending.key, pending.token, PASSED, now, begun=True)
            self._finish(write, index, result)

        self._changes.submit(change, doomed, now)

    # ---- expiring -------------------------------------------------------------------------

    def _set_deadline(self, write: ActiveWrite, index: int, key: Key, now: float) -> None:
        """Give a key another deadline, or none."""
        if self._is_revoked(write, index):
            return
        queue = self._queue_of_living(key, now)
        if queue is not None:
            queue.append(partial(self._set_deadline, write, index, key))
            return
        stored = self._engine.read(key)
        if stored is None:
            self._finish(write, index, ExpireStatus.MISSING)
            return
        if write.ttl is not None and not self._stages.may_expire(key):
            self._finish(write, index, ExpireStatus.FULL)
            return
        token, deadline = stored.token, self._deadlines.after(write.ttl)

        def changed(outcome: Outcome, now: float) -> None:
            if not outcome:
                self._deadlines.set(key, token, deadline, now)
            self._finish(write, index, _EXPIRE_REFUSED.get(outcome, ExpireStatus.DONE))

        change = Change(ChangeKind.DEADLINE, key, token, deadline=deadline)
        self._changes.submit(change, changed, now, busy=True)

    def expire_due(self, now: float) -> None:
        """Begin the expiry of keys whose deadlines have passed; of some, if there are many."""
        if self.closing:
            self._deadlines.wake_at = NEVER
        if now < self._deadlines.wake_at:
            return
        due = self._deadlines.due(now)
        account = self._sessions.writes_of_global
        try:
            while due and account.taken < WRITES_BYTES_SHARE:
                self._expire(due[0], now)
                due.popleft()
        finally:  # what is left, for lack of memory or since the engine raises, is tried again
            for _, key, _ in due:
                self._deadlines.failed(key, now)
            self.complete(self._invalidations.notify(now), now)

    def _expire(self, record: Deadline, now: float) -> None:
        """Delete a key whose deadline has passed, when nothing is under way on it any more.

        The caller then calls :meth:`complete`.
        """
        if not self._deadlines.holds(record):
            return  # while this was queued, its value or its deadline has become another
        _, key, token = record
        queue = self._queue(key)
        if queue is not None:
            queue.append(partial(self._expire, record))
            return
        stored = self._engine.read(key)
        if stored is None or stored.token != token:
            self._deadlines.drop(key)
            return
        account = self._sessions.writes_of_global
        pending = PendingDeletion(key, stored, None, 0, account, doomed=True)
        self._deadlines.pending += 1
        self._invalidations.start(pending, now)

    # ---- deleting, phase 2 ----------------------------------------------------------------

    def wake_at(self, now: float) -> float:
        """When deletions can go on that wait for the next step or the end of the quiet period."""
        if self._more:
            return now
        moment = self._quiet[0][0] if self._quiet else NEVER
        if self._completed and now < self.quiet_until:
            moment = min(moment, self.quiet_until)
        return moment

    def quiet_left(self, now: float) -> float:
        """Return the seconds for which nothing is removed or replaced, in one partition or all."""
        partitions = self._partitions
        until = 0.0 if partitions is None else partitions.all_quiet_until
        return max(0.0, max(self.quiet_until, until) - now)

    def expire(self, now: float) -> None:
        """Commit the deletions that waited only for leases that have run out."""
        self.complete(self._invalidations.acknowledgements.expire(now), now)

    def complete(self, completed: Iterable[PendingDeletion], now: float) -> None:
        """Commit deletions that wait for no holder, and further ones that these commits start.

        A commit executes the writes that were queued, and these may start deletions. If the engine
        raises, the other deletions are committed by the next call, at the latest in the next tick.
        Of many expiries the first ones are committed. All deletions are left to a later call while
        the page of Global's host can be neither written nor voided, and until the leases of a
        former life of Global are over.
        """
        while self._quiet and self._quiet[0][0] <= now:
            self._completed.append(heappop(self._quiet)[2])
        self._take(completed, now)
        self._take(self._invalidations.notify(now), now)  # what such a call has left
        left = COMMITS_MAX
        self._more = False
        try:
            while self._completed:
                if not left:
                    self._more = True
                    self._alarm.at(now)
                    break
                if now < self.quiet_until:
                    self._alarm.at(self.quiet_until)
                    break
                pending = self._completed[0]
                if not self._invalidations.own.invalidated(pending.key, pending.seq, now):
                    break  # processes of Global's host may use the value for a while
                self._completed.popleft()
                pending.submitted = True
                self._changes.submit(self._change(pending), partial(self._commit, pending), now)
                left -= self._is_expiry(pending)
                if not self._completed:
                    self._take(self._invalidations.notify(now), now)
        except BaseException:
            self._alarm.at(now)
            raise
        self._invalidations.announce()

    def _take(self, completed: Iterable[PendingDeletion], now: float) -> None:
        """Take deletions that wait for no holder. Those of quiet partitions wait for these."""
        if self._partitions is None:
            self._completed.extend(completed)
            return
        for pending in completed:
            until = self._partitions.quiet_until(pending.key)
            if now < until:
                heappush(self._quiet, (until, pending.seq, pending))
                self._alarm.at(until)
            else:
                self._completed.append(pending)

    def _is_expiry(self, pending: PendingDeletion) -> bool:
        return pending.account is self._sessions.writes_of_global

    def _change(self, pending: PendingDeletion) -> Change:
        """Return the change with which a deletion or a replacement ends."""
        new = pending.replacement
        if new is None:
            return Change(ChangeKind.REMOVE, pending.key, pending.token)
        assert pending.write is not None
        pending.deadline = self._deadlines.after(pending.write.ttl)
        return Change(ChangeKind.REPLACE, pending.key, pending.token, new, pending.deadline)

    def _commit(self, pending: PendingDeletion, outcome: Outcome, now: float) -> None:
        """End a deletion, once that is durable."""
        self._invalidations.commit(pending)
        self._holders.drop(pending.key)
        self._deadlines.pending -= self._is_expiry(pending)
        result: DelResult | SetResult
        if pending.replacement:
            result = self._replaced(pending, outcome, now)
        else:
            result = self._removed(pending, outcome, now)
        if pending.write is not None:
            self._finish(pending.write, pending.index, result)
        failed = isinstance(result, DelResult) and result.status is DelStatus.FAILED
        status = DelStatus.FAILED if failed else DelStatus.MISSING
        for write, index in pending.joined:
            self._finish(write, index, DelResult(status, self._invalidations.log.seq))
        for execute in pending.queued:
            execute(now)

    def _removed(self, pending: PendingDeletion, outcome: Outcome, now: float) -> DelResult:
        try:
            removed = not outcome and self._engine.remove(pending.key, pending.token)
        except DstoreError:
            removed = False
        if removed and pending.large:
            self._bulk.drop(pending.token)
        if removed:
            self._deadlines.drop(pending.key)
        else:
            self._deadlines.failed(pending.key, now)
        status = DelStatus.DELETED if removed else DelStatus.FAILED
        return DelResult(status, pending.seq, pending.confirmed, pending.expired)

    def _replaced(self, pending: PendingDeletion, outcome: Outcome, now: float) -> SetResult:
        new = pending.replacement
        assert new is not None
        assert pending.write is not None
        seq = self._invalidations.log.seq
        self._stages.end_replacement(pending, new)
        try:
            replaced = not outcome and self._engine.replace(pending.key, pending.token, new)
        except DstoreError:
            replaced = False
        if not replaced:
            self._stages.release(new)
            self._deadlines.failed(pending.key, now)
            return SetResult(_REFUSED.get(outcome, SetStatus.FAILED), seq)
        if pending.large:
            self._bulk.drop(pending.token)
        self._deadlines.set(pending.key, new.token, pending.deadline, now)
        cacheable = self._hold(pending.key, pending.write.holder)
        return SetResult(
            SetStatus.REPLACED, seq, cacheable, None, pending.confirmed, pending.expired
        )


def _pending(pending: PendingDeletion) -> DelResult:
    return DelResult(DelStatus.PENDING, pending.seq, pending=pending.awaited)
