"""Uploads of large values, until a SET names them.

A value arrives in chunks, in their order; each is answered with how much is here and how much more
may be under way (credit, shared out among all uploads). What came twice is not written twice. When
all is there it is compared with the digest that was announced, and only then can a SET bind it: so
a value becomes visible at once and whole. An upload is dropped when its session ends, when its
sender gives it up, and when too little has come for a while. It belongs to the session that began
it: no other can go on with it, bind it or give it up, even one that knows its token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dstore.config import (
    CHUNK_BYTES,
    CHUNKS_AHEAD,
    UPLOAD_BYTES_SHARE,
    UPLOAD_STEP,
    UPLOADS_MAX,
    UPLOADS_SHARE,
)
from dstore.core.engine import Lost
from dstore.errors import StoreFull
from dstore.protocol.content import Hasher
from dstore.protocol.messages import Large, Refusal, Stage, Stored

if TYPE_CHECKING:
    from dstore.core.authority.sessions import Session
    from dstore.core.engine import Bulk

STAGE_IDLE = 10.0
"""Seconds in which ``UPLOAD_STEP`` bytes of an upload have to come, or the rest if that is less, or
a SET of what is complete. Otherwise it is dropped.
"""
CREDIT_TOTAL = 128 << 20
"""Bytes that all uploads together may have under way; each has at least one chunk."""
NEVER = float("inf")


class _Upload:
    __slots__ = ("hasher", "received", "session", "since", "step", "stored")

    def __init__(self, stored: Stored, session: int, now: float) -> None:
        self.stored = stored
        self.session = session
        self.since = now
        self.step = UPLOAD_STEP  # so much has to be here for a further span of time
        self.received = 0
        self.hasher = Hasher(stored.codec)

    @property
    def complete(self) -> bool:
        return self.received == self.stored.size

    def moved(self, now: float) -> None:
        """Something has come."""
        if self.complete or self.received >= self.step:
            self.since = now
            self.step = self.received + UPLOAD_STEP


class StageRefused(Exception):
    """A chunk that is not taken, and why."""

    def __init__(self, refusal: Refusal, text: str) -> None:
        super().__init__(text)
        self.refusal = refusal
        self.text = text


class Stages:
    """All uploads under way, by token. ``bulk`` has their bytes."""

    def __init__(self, bulk: Bulk) -> None:
        self._bulk = bulk
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
        if not self._uploads:  # as nearly always, and it is asked after every write
            return NEVER
        return min([upload.since for upload in self._uploads.values()]) + STAGE_IDLE

    def receive(self, session: Session, message: Stage, room: int, limit: int, now: float) -> int:
        """Take a chunk; ``room`` is what may still be reserved, of a ``limit``. How many bytes are
        here now.

        Raises StageRefused.
        """
        token = message.stored.token
        upload = self._uploads.get(token)
        if upload is None:
            if self._bulk.read(token, 0, 1) is not None:
                return message.stored.size  # a late duplicate: it has been bound meanwhile
            if message.offset:
                return 0  # dropped here; its sender begins anew
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
        """Whether this session uploads this, or has done so and not yet bound it."""
        return self._upload(stored, session) is not None

    def _upload(self, stored: Stored, session: Session) -> _Upload | None:
        upload = self._uploads.get(stored.token)
        if upload is None or upload.session != session.id or upload.stored != stored:
            return None
        return upload

    def take(self, stored: Stored, session: Session, room: int) -> bool:
        """Whether the bytes of a large value are all here. If so they are now the caller's.

        ``room`` is for what a Node of this host has laid down.
        """
        if stored.token not in self._uploads:
            return stored.size <= room and self._bulk.adopt(stored.token, stored.size)
        upload = self._upload(stored, session)
        if upload is None or not upload.complete:
            return False
        self._forget(stored.token)
        return True

    def drop(self, token: bytes, session: Session) -> None:
        """Give up an upload of this session. One that has been taken is left alone."""
        upload = self._uploads.get(token)
        if upload is not None and upload.session == session.id:
            self._drop(token)

    def end(self, session: Session) -> None:
        """The session has ended."""
        for token in list(self._of.get(session.id, ())):
            self._drop(token)

    def expire(self, now: float) -> None:
        """Drop what has not moved for long."""
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
