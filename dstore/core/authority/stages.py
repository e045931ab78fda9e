"""Uploads of large values, until a SET names them; and whether there is room for a value.

A value arrives in chunks, in their order. The answer to a chunk says how many bytes have arrived
and how many more may be under way (the credit, which all uploads share). A chunk that arrives twice
is not written twice. The complete value is compared with the digest that was announced, and only
then can a SET bind it: so a value becomes visible at once and whole. An upload is dropped when its
session ends, when its sender gives it up, and when too little has arrived for a while. It belongs
to the session that began it: no other session can continue, bind or give it up, even if it knows
the token. The token of a value that is bound is worth nothing here: there is no upload of it, and a
Bulk takes over nothing that it has.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dstore.config import (
    CHUNK_BYTES,
    CHUNKS_AHEAD,
    INLINE_BYTES_MAX,
    PEER_SHARE,
    UPLOAD_BYTES_SHARE,
    UPLOAD_STEP,
    UPLOADS_MAX,
    UPLOADS_SHARE,
    share_of,
)
from dstore.core.authority.acknowledgements import PendingDeletion
from dstore.core.authority.changes import BIND_BYTES, Changes
from dstore.core.authority.deadlines import Deadlines, deadline_bytes
from dstore.core.authority.effects import NEVER, Alarm, Outbox, Refuse
from dstore.core.authority.identity import ANYONE, Identity
from dstore.core.authority.sessions import Session
from dstore.core.engine import NO_DEADLINE, Bound, Bulk, Engine, Lost, Unloaded
from dstore.errors import StoreFull
from dstore.protocol import content
from dstore.protocol.messages import (
    Key,
    Large,
    Refusal,
    Route,
    SetItem,
    SetStatus,
    Stage,
    Staged,
    Stored,
)

STAGE_IDLE = 10.0
"""Seconds within which ``UPLOAD_STEP`` bytes of an upload have to arrive, or the rest if that is
less, or, of a complete upload, the SET. Otherwise the upload is dropped.
"""
CREDIT_TOTAL = 128 << 20
"""Bytes that all uploads together may have under way; each may have at least one chunk."""


@dataclass(slots=True, eq=False, repr=False)
class _Upload:
    stored: Stored
    session: int
    identity: Identity
    since: float
    step: int = UPLOAD_STEP  # when this many bytes have arrived, STAGE_IDLE starts again
    received: int = 0
    hasher: content.Hasher = field(init=False)

    def __post_init__(self) -> None:
        self.hasher = content.Hasher(self.stored.codec)

    @property
    def complete(self) -> bool:
        return self.received == self.stored.size

    def moved(self, now: float) -> None:
        if self.complete or self.received >= self.step:
            self.since = now
            self.step = self.received + UPLOAD_STEP


class Stages:
    """All uploads, by token, and the room that they leave.

    The memory is that of the engine, of deadlines, of uploads (``reserved``), and of the
    replacements that are pending. Of such a replacement both values are here: ``replacing`` are the
    bytes of the new values, ``growing`` those by which the values will grow. No value may have more
    than ``value_limit`` bytes.
    """

    def __init__(
        self,
        engine: Engine,
        bulk: Bulk,
        changes: Changes,
        deadlines: Deadlines,
        value_limit: int,
        out: Outbox,
        alarm: Alarm,
    ) -> None:
        self.value_limit = value_limit
        self.reserved = 0
        self.replacing = 0
        self.growing = 0
        self._engine = engine
        self._bulk = bulk
        self._changes = changes
        self._deadlines = deadlines
        self._out = out
        self._alarm = alarm
        self._uploads: dict[bytes, _Upload] = {}

    def __repr__(self) -> str:
        return f"<Stages uploads={len(self)} reserved={self.reserved}>"

    def __len__(self) -> int:
        return len(self._uploads)

    @property
    def room(self) -> int:
        """Bytes that further uploads may take."""
        return self._engine.limit - self._taken - self.replacing

    @property
    def _taken(self) -> int:
        """What is taken now, and what uploads and changes on their way to the disk will take."""
        size = self._engine.size + self._deadlines.bytes
        return size + self.reserved + self._changes.bytes

    @property
    def wake_at(self) -> float:
        """When :meth:`expire` is next due."""
        if not self._uploads:
            return NEVER
        return min([upload.since for upload in self._uploads.values()]) + STAGE_IDLE

    def stage(self, session: Session, route: Route, message: Stage, now: float) -> None:
        """Take a chunk, and answer how many bytes of the value are here now."""
        self._out.counters["chunks_in"] += 1
        self._out.counters["bytes_in"] += len(message.data)
        if message.stored.size > self.value_limit:
            raise Refuse(Refusal.TOO_LARGE, "the value is too large")
        received = self._receive(session, message, now)
        share = CREDIT_TOTAL // max(1, len(self._uploads))
        credit = max(CHUNK_BYTES, min(share, CHUNKS_AHEAD * CHUNK_BYTES))
        self._out.send(route, Staged(*message[:3], message.stored.token, received, credit))

    def _is_bound(self, token: bytes) -> bool:
        try:
            return self._bulk.read(token, 0, 1) is not None
        except Unloaded:
            return True

    def _receive(self, session: Session, message: Stage, now: float) -> int:
        token = message.stored.token
        upload = self._uploads.get(token)
        if upload is None:
            if self._is_bound(token):
                return message.stored.size  # a late duplicate: it has been bound meanwhile
            if message.offset:
                return 0  # it was dropped here; its sender starts again
            upload = self._begin(session, message.stored, now)
        if upload.session != session.id:
            raise Refuse(Refusal.BAD_MESSAGE, "another session uploads under this token")
        end = message.offset + len(message.data)
        if upload.stored != message.stored or end > upload.stored.size:
            raise Refuse(Refusal.BAD_MESSAGE, "the parts of the upload do not fit together")
        if message.offset <= upload.received:
            self._append(upload, message)
        upload.moved(now)
        return upload.received

    def _begin(self, session: Session, stored: Stored, now: float) -> _Upload:
        own = [each.stored.size for each in self._of(session)]
        if len(self._uploads) >= UPLOADS_MAX:
            raise Refuse(Refusal.BUSY, f"{UPLOADS_MAX} uploads are under way")
        if len(own) >= UPLOADS_SHARE:
            raise Refuse(Refusal.BUSY, f"{UPLOADS_SHARE} uploads of this session are under way")
        self._check_share(session.identity, stored.size)
        try:
            if stored.size > self.room:
                raise StoreFull("the memory limit is reached")
            if own and sum(own) + stored.size > UPLOAD_BYTES_SHARE * self._engine.limit:
                text = f"uploads of this session have reserved {sum(own):,} bytes"
                raise Refuse(Refusal.BUSY, text)
            self._bulk.reserve(stored.token, stored.size)
        except StoreFull as error:
            raise Refuse(Refusal.FULL, str(error)) from None
        upload = _Upload(stored, session.id, session.identity, now)
        self._uploads[stored.token] = upload
        self.reserved += stored.size
        self._alarm.at(now + STAGE_IDLE)
        return upload

    def _check_share(self, identity: Identity, size: int) -> None:
        """Raise Refuse if the sessions of one identity may not begin another upload."""
        if identity is ANYONE:
            return
        own = [each.stored.size for each in self._uploads.values() if each.identity is identity]
        if len(own) >= share_of(UPLOADS_MAX):
            raise Refuse(Refusal.BUSY, f"{len(own)} uploads of {identity.name!r} are under way")
        if own and sum(own) + size > PEER_SHARE * self._engine.limit:
            text = f"uploads of {identity.name!r} have reserved {sum(own):,} bytes"
            raise Refuse(Refusal.BUSY, text)

    def _append(self, upload: _Upload, message: Stage) -> None:
        new = memoryview(message.data)[upload.received - message.offset :]
        if not new:
            return
        token = upload.stored.token
        try:
            self._bulk.write(token, upload.received, new)
        except Lost:
            upload.received, upload.hasher = 0, content.Hasher(upload.stored.codec)
            return
        except StoreFull as error:
            self._drop(token)
            raise Refuse(Refusal.FULL, str(error)) from None
        upload.hasher.update(new)
        upload.received += len(new)
        if upload.complete:
            assert isinstance(upload.stored.body, Large)
            if upload.hasher.digest() != upload.stored.body.digest:
                self._drop(token)
                raise Refuse(Refusal.DAMAGED, "the value was damaged on its way")
            self._bulk.seal(token)

    def drop(self, token: bytes, session: Session) -> None:
        """Drop an upload of this session. A value that has been taken is no upload any more."""
        upload = self._uploads.get(token)
        if upload is not None and upload.session == session.id:
            self._drop(token)

    def end(self, session: Session) -> None:
        for upload in self._of(session):
            self._drop(upload.stored.token)

    def _of(self, session: Session) -> list[_Upload]:
        return [each for each in self._uploads.values() if each.session == session.id]

    def expire(self, now: float) -> None:
        """Drop the uploads of which too little has arrived for too long."""
        for token in [t for t, u in self._uploads.items() if u.since + STAGE_IDLE <= now]:
            self._drop(token)

    def _drop(self, token: bytes) -> None:
        self._forget(token)
        self._bulk.drop(token)

    def _forget(self, token: bytes) -> None:
        self.reserved -= self._uploads.pop(token).stored.size

    def _find(self, stored: Stored, session: Session) -> _Upload | None:
        """Return the upload of this value by this session, if it has begun and is not bound."""
        upload = self._uploads.get(stored.token)
        if upload is None or upload.session != session.id or upload.stored != stored:
            return None
        return upload

    # ---- binding --------------------------------------------------------------------------

    def claim(
        self, session: Session, item: SetItem, old: Bound | None, deadline: bool
    ) -> SetStatus | None:
        """Claim what is needed to bind a value in place of ``old``, perhaps with a ``deadline``.

        Returns why the value cannot be bound, or None if it can. The bytes of a large value are
        then taken from its upload.
        """
        stored = item.stored
        if stored.size > self.value_limit or stored.inline > INLINE_BYTES_MAX:
            return SetStatus.TOO_LARGE
        if not session.identity.addresses.matches(item.key, stored):
            return SetStatus.MISMATCH
        further = deadline_bytes(item.key) if deadline else 0
        if not self._engine.fits(item.key, stored):
            return SetStatus.FULL
        if not self._will_fit(session, stored, old, further):
            return SetStatus.FULL
        if type(stored.body) is Large and not self._take(stored, session):
            return SetStatus.ABSENT
        return None

    def _take(self, stored: Stored, session: Session) -> bool:
        """Take the bytes of a large value from its upload, if they are all here.

        Or take over a value that a Node of this host has written to shared memory.
        """
        if stored.token not in self._uploads:
            return stored.size <= self.room and self._bulk.adopt(stored.token, stored.size)
        upload = self._find(stored, session)
        if upload is None or not upload.complete:
            return False
        self._forget(stored.token)
        return True

    def may_expire(self, key: Key) -> bool:
        """Whether there is room for the deadline of a key that has a value."""
        if self._deadlines.of(key) != NO_DEADLINE:
            return True
        return self._taken + self.growing + deadline_bytes(key) <= self._engine.limit

    def _will_fit(self, session: Session, stored: Stored, old: Bound | None, further: int) -> bool:
        """Whether the value also fits when all uploads and replacements have ended.

        ``further`` are bytes that it takes beside the engine.
        """
        if self._find(stored, session) is not None:  # it is one of these uploads
            return True
        growth = stored.size + further - (old.size if old is not None else 0)
        if self._changes.durable and old is None:  # it must fit when it is applied, later
            growth += BIND_BYTES
        return self._taken + self.growing + growth <= self._engine.limit or growth <= 0

    def release(self, stored: Stored) -> None:
        """Drop the bytes of a claimed value that could not be bound."""
        if type(stored.body) is Large:
            self._bulk.drop(stored.token)

    def begin_replacement(self, pending: PendingDeletion, new: Stored) -> None:
        pending.replacement = new
        self.replacing += new.size
        self.growing += new.size - pending.size

    def end_replacement(self, pending: PendingDeletion, new: Stored) -> None:
        """A replacement is committed or has failed."""
        self.replacing -= new.size
        self.growing -= new.size - pending.size
