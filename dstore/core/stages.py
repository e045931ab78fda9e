"""Uploads of large values, until a SET names them.

A value arrives in chunks, in their order; each is answered with how much is here and how much more
may be under way (credit, shared out among all uploads). What came twice is not written twice. When
all is there it is compared with the digest that was announced, and only then can a SET bind it: so
a value becomes visible at once and whole. An upload is dropped when its session ends, when its
sender gives it up, and when nothing has come for a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dstore.config import CHUNK_BYTES, CHUNKS_AHEAD
from dstore.content import Hasher
from dstore.errors import StoreFull
from dstore.messages import Large, Refusal, Stage, Stored

if TYPE_CHECKING:
    from dstore.core.sessions import Session
    from dstore.engines.base import Bulk

STAGE_IDLE = 10.0
"""Seconds without a chunk, or without a SET of what is complete, after which it is dropped."""
UPLOADS_MAX = 256
"""Uploads at one time, each with a file that is open; more have to wait."""
CREDIT_TOTAL = 128 << 20
"""Bytes that all uploads together may have under way; each has at least one chunk."""
NEVER = float("inf")


class _Upload:
    __slots__ = ("hasher", "received", "session", "since", "stored")

    def __init__(self, stored: Stored, session: int) -> None:
        self.stored = stored
        self.session = session
        self.since = 0.0
        self.received = 0
        self.hasher = Hasher(stored.codec)

    @property
    def complete(self) -> bool:
        return self.received == self.stored.size


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
        since = min((upload.since for upload in self._uploads.values()), default=NEVER)
        return since + STAGE_IDLE

    def receive(self, session: Session, message: Stage, room: int, now: float) -> int:
        """Take a chunk; ``room`` is what may still be reserved. How many bytes are here now.

        Raises StageRefused.
        """
        token = message.stored.token
        upload = self._uploads.get(token)
        if upload is None:
            if self._bulk.read(token, 0, 1) is not None:
                return message.stored.size  # a late duplicate: it has been bound meanwhile
            if message.offset:
                return 0  # dropped here; its sender begins anew
            upload = self._begin(session, message, room)
        end = message.offset + len(message.data)
        if upload.stored != message.stored or end > upload.stored.size:
            raise StageRefused(Refusal.BAD_MESSAGE, "the parts of the upload do not fit together")
        upload.session, upload.since = session.id, now
        if message.offset <= upload.received:
            self._append(upload, message)
        return upload.received

    def _begin(self, session: Session, message: Stage, room: int) -> _Upload:
        stored = message.stored
        if len(self._uploads) >= UPLOADS_MAX:
            raise StageRefused(Refusal.BUSY, f"{UPLOADS_MAX} uploads are under way")
        try:
            if stored.size > room:
                raise StoreFull("the memory limit is reached")
            self._bulk.reserve(stored.token, stored.size)
        except StoreFull as error:
            raise StageRefused(Refusal.FULL, str(error)) from None
        upload = self._uploads[stored.token] = _Upload(stored, session.id)
        self.reserved += stored.size
        return upload

    def _append(self, upload: _Upload, message: Stage) -> None:
        new = memoryview(message.data)[upload.received - message.offset :]
        if not new:
            return
        token = upload.stored.token
        try:
            self._bulk.write(token, upload.received, new)
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

    def take(self, stored: Stored, room: int) -> bool:
        """Whether the bytes of a large value are all here. If so they are now the caller's.

        ``room`` is for what a Node of this host has laid down.
        """
        upload = self._uploads.get(stored.token)
        if upload is None:
            return stored.size <= room and self._bulk.adopt(stored.token, stored.size)
        if not upload.complete or upload.stored != stored:
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
        for token in [t for t, upload in self._uploads.items() if upload.session == session.id]:
            self._drop(token)

    def expire(self, now: float) -> None:
        """Drop what has not moved for long."""
        for token in [t for t, u in self._uploads.items() if u.since + STAGE_IDLE <= now]:
            self._drop(token)

    def _drop(self, token: bytes) -> None:
        self._forget(token)
        self._bulk.drop(token)

    def _forget(self, token: bytes) -> None:
        self.reserved -= self._uploads.pop(token).stored.size
