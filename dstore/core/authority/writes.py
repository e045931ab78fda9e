"""How Global binds, replaces and deletes: each write once, each deletion in two phases.

In the first phase the key is marked *pending*, the deletion gets its number and is published; the
engine still has the value, and whoever asks gets it marked "do not cache". In the second, when
every holder has acknowledged that number or its lease, as it stood in the first phase, has run
out, the key is removed and the deleter is answered. Removing first would let one client read
"missing" while another, later, still reads the old value from its cache.

What a SET or a replacement of a pending key finds is decided by what comes after the removal: it
queues, and runs afresh then. A second DEL joins the wait and is then told that the key is missing.
A replacement is a deletion whose removal and new value are one step: between the two there is no
moment at which the key is missing, so that a DEL of a key that is being replaced queues too, and
deletes the new value.

A SET names a large value by its token. If the bytes are not here yet it is told so (ABSENT),
uploads them and asks again; see :mod:`dstore.core.authority.stages`.
"""

from __future__ import annotations

from functools import partial

from dstore.config import INLINE_BYTES_MAX, OUTCOMES_MAX
from dstore.core.authority.budgets import text_bytes
from dstore.core.authority.calls import CALL_BYTES, CALL_ITEM_BYTES, Call, recorded, repeated
from dstore.core.authority.invalidations import Invalidations
from dstore.core.authority.outbox import Outbox
from dstore.core.authority.pending import PendingDeletion, PendingDeletions
from dstore.core.authority.sessions import Session, Sessions, outcome_bytes
from dstore.core.authority.stages import Stages
from dstore.core.engine import Bulk, Engine
from dstore.errors import DstoreError, StoreFull
from dstore.protocol import content
from dstore.protocol.messages import (
    Del,
    DelResult,
    DelStatus,
    Found,
    Key,
    Large,
    Refusal,
    Route,
    Set,
    SetItem,
    SetResult,
    SetStatus,
    Stored,
)


class Writes:
    """The writing half of :class:`~dstore.core.authority.state.GlobalState`."""

    def __init__(
        self,
        epoch: int,
        engine: Engine,
        bulk: Bulk,
        stages: Stages,
        sessions: Sessions,
        deletions: PendingDeletions,
        invalidations: Invalidations,
        out: Outbox,
        value_limit: int,
    ) -> None:
        self.closing = False
        self.bound: list[Key] = []  # keys that were free; GlobalState takes them
        self._epoch = epoch
        self._engine = engine
        self._bulk = bulk
        self._stages = stages
        self._sessions = sessions
        self._holders = sessions.holders
        self._deletions = deletions
        self._invalidations = invalidations
        self._out = out
        self._value_limit = value_limit
        self._replacing_bytes = 0
        self._growing_bytes = 0

    @property
    def room(self) -> int:
        """Bytes that further uploads may take: both values of a replacement are here meanwhile."""
        taken = self._engine.size + self._stages.reserved + self._replacing_bytes
        return self._engine.limit - taken

    # ---- a write, once --------------------------------------------------------------------

    def set(self, route: Route, session: Session, message: Set, now: float) -> None:
        held = sum([text_bytes(item.key) + item.stored.inline for item in message.items])
        call = self._admit(route, session, message, len(message.items), held)
        if call is not None:
            self._out.counters["sets"] += len(message.items)
            for index, item in enumerate(message.items):
                self._set(call, index, item, message.replace, now)

    def delete(self, route: Route, session: Session, message: Del, now: float) -> None:
        held = sum(map(text_bytes, message.keys))
        call = self._admit(route, session, message, len(message.keys), held)
        if call is not None:
            self._out.counters["dels"] += len(message.keys)
            for index, key in enumerate(message.keys):
                self._delete(call, index, key, message.wait, now)

    def _admit(
        self, route: Route, session: Session, message: Set | Del, size: int, held: int
    ) -> Call | None:
        """A call to work on, or None if the write is a repeat or refused.

        It has ``size`` items, and ``held`` bytes of keys and values.
        """
        session.forget_outcomes(message.seen)
        known = session.outcomes.get(message.write)
        if isinstance(known, Call):  # still at work: answer where it was asked last
            known.route, known.request = route, message.request
            return None
        if known is not None:
            envelope = (self._epoch, session.id, message.request)
            self._out.send(route, repeated(known, envelope))
            return None
        cost = CALL_BYTES + size * CALL_ITEM_BYTES + held
        refusal = self._refusal(session, message, cost)
        if refusal is not None:
            self._out.refuse(route, message, *refusal)
            return None
        call = Call(route, session, message, size, cost)
        session.writes.take(cost)
        session.outcomes[message.write] = call
        return call

    def _refusal(
        self, session: Session, message: Set | Del, cost: int
    ) -> tuple[Refusal, str] | None:
        if message.write < session.seen:
            return Refusal.STALE_WRITE, "its sender has given it up"
        if self.closing:
            return Refusal.CLOSING, "Global is shutting down"
        if len(session.outcomes) >= OUTCOMES_MAX:
            return Refusal.BUSY, f"{OUTCOMES_MAX:,} writes of this session wait to be seen"
        if not session.writes.admits(cost):
            taken = session.writes.taken
            return Refusal.BUSY, f"too many writes wait, {taken:,} bytes of them of this session"
        return None

    def _finish(self, call: Call, index: int, result: SetResult | DelResult) -> None:
        """Note one outcome of a call, and answer when it was the last."""
        if not call.note(index, result):
            return
        session = call.session
        reply = call.reply(self._epoch)
        self._out.send(call.route, reply)
        left = -call.cost
        if session.open and call.write >= session.seen:
            outcome = session.outcomes[call.write] = recorded(reply)
            left += outcome_bytes(outcome)
        session.writes.take(left)

    # ---- binding --------------------------------------------------------------------------

    def _set(self, call: Call, index: int, item: SetItem, replace: bool, now: float) -> None:
        pending = self._deletions.pending.get(item.key)
        if pending is not None:
            pending.queued.append(partial(self._set, call, index, item, replace))
            return
        old = self._engine.read(item.key)
        if old is not None and not replace:
            result = self._occupied(call, item.key, old)
        elif (refusal := self._unfit(call, item, old)) is not None:
            result = SetResult(refusal, self._deletions.seq)
        elif old is None:
            result = self._bind(call.session, item)
        else:
            pending = self._deletions.begin(PendingDeletion(item.key, old, call, index), now)
            pending.replacement = item.stored
            self._replacing_bytes += item.stored.size
            self._growing_bytes += item.stored.size - old.size
            return
        refused = result.status not in (SetStatus.STORED, SetStatus.ABSENT)
        if refused and type(item.stored.body) is Large:
            self._stages.drop(item.stored.token, call.session)
        self._finish(call, index, result)

    def _unfit(self, call: Call, item: SetItem, old: Stored | None) -> SetStatus | None:
        """Why this value cannot be bound now. If nothing is, the bytes of a large one are taken."""
        stored = item.stored
        if stored.size > self._value_limit or stored.inline > INLINE_BYTES_MAX:
            return SetStatus.TOO_LARGE
        if not content.matches(item.key, stored):
            return SetStatus.MISMATCH
        if not self._engine.fits(item.key, stored) or not self._will_fit(call, stored, old):
            return SetStatus.FULL
        if type(stored.body) is Large and not self._stages.take(stored, call.session, self.room):
            return SetStatus.ABSENT
        return None

    def _will_fit(self, call: Call, stored: Stored, old: Stored | None) -> bool:
        """Whether it also fits once all that is under way has ended."""
        coming = self._growing_bytes + self._stages.reserved
        if self._stages.has(stored, call.session):  # it is part of that
            return True
        growth = stored.size - (old.size if old is not None else 0)
        return self._engine.size + coming + growth <= self._engine.limit or growth <= 0

    def _bind(self, session: Session, item: SetItem) -> SetResult:
        seq = self._deletions.seq
        try:
            self._engine.bind(item.key, item.stored)
        except DstoreError as error:
            self._give_up(item.stored)
            full = isinstance(error, StoreFull)
            return SetResult(SetStatus.FULL if full else SetStatus.FAILED, seq)
        self.bound.append(item.key)
        return SetResult(SetStatus.STORED, seq, self._hold(item.key, session))

    def _occupied(self, call: Call, key: Key, old: Stored) -> SetResult:
        seq = self._deletions.seq
        found = None
        if type(old.body) is Large:
            return SetResult(SetStatus.OCCUPIED, seq)  # who wants its bytes can ask for them
        if call.takes(old.inline) and self._hold(key, call.session):
            found = Found(seq, True, old)
        return SetResult(SetStatus.OCCUPIED, seq, found=found)

    def _give_up(self, stored: Stored) -> None:
        """A value that was taken could not be bound."""
        if type(stored.body) is Large:
            self._bulk.drop(stored.token)

    def _hold(self, key: Key, session: Session) -> bool:
        """Make the writer a holder, so that its answer may be cached.

        Not if its session has ended while the write was queued: its bit may be another's by now.
        Nor if the record of holders has no room.
        """
        return session.open and self._holders.add(key, session.bit)

    # ---- deleting, phase 1 ----------------------------------------------------------------

    def _delete(self, call: Call, index: int, key: Key, wait: bool, now: float) -> None:
        pending = self._deletions.pending.get(key)
        if pending is None:
            self._begin_deletion(call, index, key, wait, now)
        elif pending.replacement is not None:
            pending.queued.append(partial(self._delete, call, index, key, wait))
        elif wait:
            pending.joined.append((call, index))
        else:
            self._finish(call, index, _pending(pending))

    def _begin_deletion(self, call: Call, index: int, key: Key, wait: bool, now: float) -> None:
        stored = self._engine.read(key)
        if stored is None:
            self._finish(call, index, DelResult(DelStatus.MISSING, self._deletions.seq))
            return
        pending = self._deletions.begin(PendingDeletion(key, stored, call, index), now)
        if not wait:
            pending.call = None
            self._finish(call, index, _pending(pending))

    def settle(self, now: float) -> None:
        """Have published what has begun, and commit what nobody needs to acknowledge."""
        while begun := self._deletions.take_begun():
            self._invalidations.begun(begun, self._deletions.take_called(), now)
            for pending in begun:
                if not pending.awaiting:
                    self._commit(pending, now)

    # ---- between the phases ---------------------------------------------------------------

    def confirm(self, session: Session, applied: int, now: float) -> None:
        """The session has applied all deletions up to ``applied``."""
        for pending in self._deletions.confirm(session, applied, now):
            self._commit(pending, now)

    def expire(self, now: float) -> None:
        """Leases run out."""
        for pending in self._deletions.expire(now):
            self._commit(pending, now)

    # ---- deleting, phase 2 ----------------------------------------------------------------

    def _commit(self, pending: PendingDeletion, now: float) -> None:
        self._deletions.end(pending)
        self._holders.drop(pending.key)
        result = self._replaced(pending) if pending.replacement else self._removed(pending)
        if pending.call is not None:
            self._finish(pending.call, pending.index, result)
        failed = isinstance(result, DelResult) and result.status is DelStatus.FAILED
        status = DelStatus.FAILED if failed else DelStatus.MISSING
        for call, index in pending.joined:
            self._finish(call, index, DelResult(status, self._deletions.seq))
        for run in pending.queued:
            run(now)

    def _removed(self, pending: PendingDeletion) -> DelResult:
        try:
            removed = self._engine.remove(pending.key, pending.token)
        except DstoreError:
            removed = False
        if removed and pending.large:
            self._bulk.drop(pending.token)
        status = DelStatus.DELETED if removed else DelStatus.FAILED
        return DelResult(status, pending.seq, pending.confirmed, pending.expired)

    def _replaced(self, pending: PendingDeletion) -> SetResult:
        assert pending.replacement is not None
        assert pending.call is not None
        seq = self._deletions.seq
        self._replacing_bytes -= pending.replacement.size
        self._growing_bytes -= pending.replacement.size - pending.size
        try:
            replaced = self._engine.replace(pending.key, pending.token, pending.replacement)
        except DstoreError:
            replaced = False
        if not replaced:
            self._give_up(pending.replacement)
            return SetResult(SetStatus.FAILED, seq)
        if pending.large:
            self._bulk.drop(pending.token)
        cacheable = self._hold(pending.key, pending.call.session)
        return SetResult(
            SetStatus.REPLACED, seq, cacheable, None, pending.confirmed, pending.expired
        )


def _pending(pending: PendingDeletion) -> DelResult:
    return DelResult(DelStatus.PENDING, pending.seq, pending=pending.awaiting)
