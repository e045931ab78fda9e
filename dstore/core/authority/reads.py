"""How Global answers the requests that change no key: GET, WAIT, SCAN and FETCH.

A reader becomes a holder of the value in the same step in which the engine is read. So no deletion
can start in between and miss the new holder.
"""

from __future__ import annotations

from dstore.config import BATCH_BYTES_MAX, KEYS_PER_MESSAGE_MAX
from dstore.core.authority.invalidations import Invalidations
from dstore.core.authority.outbox import Outbox
from dstore.core.authority.sessions import Session, Sessions
from dstore.core.authority.waits import Waits
from dstore.core.engine import Bulk, Engine
from dstore.protocol.messages import (
    Chunk,
    Fetch,
    Found,
    Get,
    GetReply,
    Key,
    Refusal,
    Route,
    Scan,
    ScanReply,
    Wait,
)

ANSWERS_BYTES = BATCH_BYTES_MAX
"""Bytes of answers to waiting requests in one step; each answer counts ``ANSWER_BYTES`` more."""
ANSWER_BYTES = 1_000


class Reads:
    """The reading half of :class:`~dstore.core.authority.state.GlobalState`."""

    def __init__(
        self,
        epoch: int,
        engine: Engine,
        bulk: Bulk,
        sessions: Sessions,
        invalidations: Invalidations,
        waits: Waits,
        out: Outbox,
    ) -> None:
        self._epoch = epoch
        self._engine = engine
        self._bulk = bulk
        self._holders = sessions.holders
        self._log = invalidations.log
        self._pending = invalidations.pending
        self._waits = waits
        self._out = out

    def get(self, session: Session, route: Route, message: Get, now: float) -> None:
        """Answer a GET. A reply that would become too large ends early."""
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
        self._out.send(route, GetReply(self._epoch, session.id, message.request, items))

    def _read(self, key: Key, session: Session) -> Found | None:
        seq = self._log.seq  # before the engine is read
        stored = self._engine.read(key)
        if stored is None:
            return None
        if key in self._pending:
            return Found(seq, False, stored)
        return Found(seq, self._holders.add(key, session.bit), stored)

    def wait(self, session: Session, route: Route, message: Wait, now: float) -> None:
        """Answer a WAIT, now or when its key has been bound."""
        self._out.counters["waits"] += 1
        if self._engine.read(message.key) is not None:
            self._answer(session, route, message)
        elif self._waits.full(session, message):
            text = f"too many requests wait, {session.waits.taken:,} bytes of them of this session"
            self._out.refuse(route, message, Refusal.BUSY, text)
        else:
            self._waits.add(session, route, message, now)

    def answer_bound(self) -> None:
        """Answer some of the requests whose keys have been bound; the next ticks answer others."""
        room = ANSWERS_BYTES
        while room > 0 and (key := self._waits.answerable()) is not None:
            stored = self._engine.read(key)
            if stored is None:
                self._waits.gone()
            else:
                self._answer(*self._waits.take(key))
                room -= ANSWER_BYTES + stored.inline

    def expire(self, now: float) -> None:
        """Answer the requests that have waited for as long as they wanted."""
        for waiting in self._waits.expire(now):
            self._answer(*waiting)

    def _answer(self, session: Session, route: Route, message: Wait) -> None:
        items = [self._read(message.key, session)]
        self._out.send(route, GetReply(self._epoch, session.id, message.request, items))

    def scan(self, session: Session, route: Route, message: Scan, now: float) -> None:
        """Answer a SCAN with one page of keys."""
        self._out.counters["scans"] += 1
        limit = max(1, min(message.limit, KEYS_PER_MESSAGE_MAX))
        keys = self._engine.scan(message.prefix, message.after, limit)
        after = keys[-1] if len(keys) == limit else ""
        self._out.send(route, ScanReply(self._epoch, session.id, message.request, keys, after))

    def fetch(self, session: Session, route: Route, message: Fetch, now: float) -> None:
        """Answer a FETCH with a part of a large value."""
        data = self._bulk.read(message.token, message.offset, message.length)
        if not data:
            self._out.refuse(route, message, Refusal.GONE, "the value is not here any more")
            return
        self._out.counters["chunks_out"] += 1
        self._out.counters["bytes_out"] += len(data)
        envelope = (self._epoch, session.id, message.request)
        self._out.send(route, Chunk(*envelope, message.token, message.offset, data))
