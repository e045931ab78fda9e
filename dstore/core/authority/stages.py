"""Uploads of large values, until a SET names them.

A value arrives in chunks, in their order. The answer to a chunk says how many bytes have arrived
and how many more may be under way (the credit, which all uploads share). A chunk that arrives twice
is not written twice. The complete value is compared with the digest that was announced, and only
then can a SET bind it: so a value becomes visible at once and whole. An upload is dropped when its
session ends, when its sender gives it up, and when too little has arrived for a while. It belongs
to the session that began it: no other session can continue, bind or give it up, even if it knows
the token.
"""

from __future__ import annotations

from dstore.config import (
    CHUNK_BYTES,
    CHUNKS_AHEAD,
    UPLOAD_BYTES_SHARE,
    UPLOAD_STEP,
    UPLOADS_MAX,
    UPLOADS_SHARE,
)
from dstore.core.authority.alarm import NEVER, Alarm
from dstore.core.authority.sessions import Session
from dstore.core.engine import Bulk, Lost
from dstore.errors import StoreFull
from dstore.protocol.content import Hasher
from dstore.protocol.messages import Large, Refusal, Stage, Stored

STAGE_IDLE = 10.0
"""Seconds within which ``UPLOAD_STEP`` bytes of an upload have to arrive, or the rest if that is
less, or, of a complete upload, the SET. Otherwise the upload is dropped.
"""
CREDIT_TOTAL = 128 << 20
"""Bytes that all uploads together may have under way; each may have at least one chunk."""


class _Upload:
    __slots__ = ("hasher", "received", "session", "since", "step", "stored")

    def __init__(self, stored: Stored, session: int, now: float) -> None:
        self.stored = stored
        self.session = session
        self.since = now
        self.step = UPLOAD_STEP  # when this many bytes are here, the time starts again
        self.received = 0
        self.hasher = Hasher(stored.codec)

    @property
    def complete(self) -> bool:
        return self.received == self.stored.size

    def moved(self, now: float) -> None:
        """A chunk has arrived."""
        if self.complete or self.received >= self.step:
            self.since = now
            self.step = self.received + UPLOAD_STEP


class StageRefused(Exception):
    """A chunk is not taken. ``refusal`` and ``text`` say why."""

    def __init__(self, refusal: Refusal, text: str) -> None:
        super().__init__(text)
        self.refusal = refusal
        self.text = text


class Stages:
    """All uploads, by token. ``bulk`` has their bytes; ``reserved`` is how many they will have."""

    def __init__(self, bulk: Bulk, alarm: Alarm) -> None:
        self._bulk = bulk
        self._alarm = alarm
        self._uploads: dict[bytes, _Upload] = {}
        self._of: dict[int, dict[bytes, int]] = {}  # by session: its tokens, with their sizes
        self.reserved = 0

    def __repr__(self) -> str:
        return f"<Stages uploads={len(self)} reserved={self.reserved}>"

    def __len__(self) -> int:
        return len(self._uploads)

    @property
    def credit(self) -> int:
        """Bytes that each upload may have under way."""
        share = CREDIT_TOTAL // max(1, len(self._uploads))
        return max(CHUNK_BYTES, min(share, CHUNKS_AHEAD * CHUNK_BYTES))

    @property
    def wake_at(self) -> float:
        """When :meth:`expire` is next due."""
        if not self._uploads:
            return NEVER
        return min([upload.since for upload in self._uploads.values()]) + STAGE_IDLE

    def receive(self, session: Session, message: Stage, room: int, limit: int, now: float) -> int:
        """Take a chunk. Returns how many bytes of the value are here now.

        ``room`` is how many bytes may still be reserved, out of ``limit``. Raises StageRefused.
        """
        token = message.stored.token
        upload = self._uploads.get(token)
        if upload is None:
            if self._bulk.read(token, 0, 1) is not None:
                return message.stored.size  # a late duplicate: it has been bound meanwhile
            if message.offset:
                return 0  # it was dropped here; its sender starts again
            upload = self._begin(session, message, room, limit, now)
        if upload.session != session.id:
            raise StageRefused(Refusal.BAD_MESSAGE, "another session uploads under this token")
        end = message.offset + len(message.data)
        if upload.stored != message.stored or end > upload.stored.size:
            raise StageRefused(Refusal.BAD_MESSAGE, "the parts of the upload do not fit together")
        if message.offset <= upload.received:
            self._append(upload, message)
        upload.moved(now)
        return upload.received

    def _begin(
        self, session: Session, message: Stage, room: int, limit: int, now: float
    ) -> _Upload:
        stored = message.stored
        own = self._of.get(session.id, {})
        if len(self._uploads) >= UPLOADS_MAX:
            raise StageRefused(Refusal.BUSY, f"{UPLOADS_MAX} uploads are under way")
        if len(own) >= UPLOADS_SHARE:
            raise StageRefused(
                Refusal.BUSY, f"{UPLOADS_SHARE} uploads of this session are under way"
            )
        try:
            if stored.size > room:
                raise StoreFull("the memory limit is reached")
            if own and sum(own.values()) + stored.size > UPLOAD_BYTES_SHARE * limit:
                text = f"uploads of this session have reserved {sum(own.values()):,} bytes"
                raise StageRefused(Refusal.BUSY, text)
            self._bulk.reserve(stored.token, stored.size)
        except StoreFull as error:
            raise StageRefused(Refusal.FULL, str(error)) from None
        upload = self._uploads[stored.token] = _Upload(stored, session.id, now)
        self._of.setdefault(session.id, {})[stored.token] = stored.size
        self.reserved += stored.size
        self._alarm.at(now + STAGE_IDLE)
        return upload

    def _append(self, upload: _Upload, message: Stage) -> None:
        new = memoryview(message.data)[upload.received - message.offset :]
        if not new:
            return
        token = upload.stored.token
        try:
            self._bulk.write(token, upload.received, new)
        except Lost:
            upload.received, upload.hasher = 0, Hasher(upload.stored.codec)
            return
        except StoreFull as error:
            self._drop(token)
            raise StageRefused(Refusal.FULL, str(error)) from None
        upload.hasher.update(new)
        upload.received += len(new)
        if upload.complete:
            assert isinstance(upload.stored.body, Large)
            if upload.hasher.digest() != upload.stored.body.digest:
                self._drop(token)
                raise StageRefused(Refusal.DAMAGED, "the value was damaged on its way")
            self._bulk.seal(token)

    def has(self, stored: Stored, session: Session) -> bool:
        """Whether this session uploads this value, or has uploaded it and not yet bound it."""
        return self._upload(stored, session) is not None

    def _upload(self, stored: Stored, session: Session) -> _Upload | None:
        upload = self._uploads.get(stored.token)
        if upload is None or upload.session != session.id or upload.stored != stored:
            return None
        return upload

    def take(self, stored: Stored, session: Session, room: int) -> bool:
        """Hand the bytes of a large value to the caller. Returns False if some are missing.

        Of ``room`` bytes a value may be taken that a Node of this host has written to shared
        memory.
        """
        if stored.token not in self._uploads:
            return stored.size <= room and self._bulk.adopt(stored.token, stored.size)
        upload = self._upload(stored, session)
        if upload is None or not upload.complete:
            return False
        self._forget(stored.token)
        return True

    def drop(self, token: bytes, session: Session) -> None:
        """Drop an upload of this session. A value that has been taken is no upload any more."""
        upload = self._uploads.get(token)
        if upload is not None and upload.session == session.id:
            self._drop(token)

    def end(self, session: Session) -> None:
        """Drop the uploads of a session that has ended."""
        for token in list(self._of.get(session.id, ())):
            self._drop(token)

    def expire(self, now: float) -> None:
        """Drop the uploads of which too little has arrived for too long."""
        for token in [t for t, u in self._uploads.items() if u.since + STAGE_IDLE <= now]:
            self._drop(token)

    def _drop(self, token: bytes) -> None:
        self._forget(token)
        self._bulk.drop(token)

    def _forget(self, token: bytes) -> None:
        upload = self._uploads.pop(token)
        self.reserved -= upload.stored.size
        own = self._of[upload.session]
        del own[token]
        if not own:
            del self._of[upload.session]
