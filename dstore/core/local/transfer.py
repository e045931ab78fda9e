"""Transfers of large values, chunk by chunk, in either direction.

Both sides bound what is under way. To download, a Local asks for a few chunks ahead of what it
has; Global keeps no state for it and sends what it is asked for. To upload, a Local sends as far
ahead of what Global has received as Global's last answer allows (its credit).

The chunks of one transfer travel on one channel, in order. When nothing arrives for a while,
because a connection was lost with everything on it, the transfer resumes from the last byte that
arrived. It fails when nothing has arrived for the whole of ``stall_timeout``: a large value on a
slow link may take any time as long as it makes progress.

Like operations, transfers are generators that yield steps. They do not use the LocalState, so the
host drives them without its lock.
"""

from __future__ import annotations

from dstore.config import CHUNK_BYTES, CHUNKS_AHEAD
from dstore.core.local.steps import (
    Body,
    ReceiveReply,
    SendChunk,
    Transfer,
    TransferFailed,
    Write,
)
from dstore.protocol.content import Hasher
from dstore.protocol.messages import (
    Chunk,
    Fetch,
    Key,
    Large,
    Refusal,
    Refused,
    Stage,
    Staged,
    Stored,
)

QUIET_FIRST, QUIET_MAX = 0.5, 2.0
"""Seconds of silence after which a transfer resumes from what has arrived; the pause doubles."""


class Damaged(Exception):
    """All bytes have arrived, and they do not have the digest that was announced."""


class _Pace:
    """Decides when a silent transfer resumes and when it fails."""

    def __init__(self, now: float, stall_timeout: float) -> None:
        self._stall_timeout = stall_timeout
        self._quiet = QUIET_FIRST
        self.progress(now)

    def progress(self, now: float) -> None:
        """Note that something has arrived."""
        self._quiet = min(QUIET_FIRST, self._stall_timeout / 4)
        self.end = now + self._stall_timeout
        self._next = now + self._quiet

    def until(self, now: float) -> float:
        """Return the time until which to wait for the next reply."""
        return min(self.end, max(now, self._next))

    def silent(self, now: float) -> None:
        """Note that nothing has arrived by ``now``. Raises TransferFailed after the timeout."""
        if now >= self.end:
            raise TransferFailed(None)
        self._quiet = min(2 * self._quiet, QUIET_MAX)
        self._next = now + self._quiet


def download(
    envelope: tuple[int, int, int],
    key: Key,
    stored: Stored,
    write: Write,
    now: float,
    stall_timeout: float,
    chunk: int = CHUNK_BYTES,
) -> Transfer:
    """Fetch the large value of a key, and ``write`` its parts (offset, bytes) in order.

    See FetchBody. Raises TransferFailed and Damaged.
    """
    assert isinstance(stored.body, Large)
    size = stored.body.size
    hasher = Hasher(stored.codec)
    pace = _Pace(now, stall_timeout)
    asked = received = 0
    while received < size:
        while asked < min(size, received + CHUNKS_AHEAD * chunk):
            ask = Fetch(*envelope, key, stored.token, asked, min(chunk, size - asked))
            result = yield SendChunk(ask, pace.end)
            if not result.sent:
                raise TransferFailed(None)
            asked += ask.length
        result = yield ReceiveReply(pace.until(result.now))
        reply = result.reply
        if isinstance(reply, Refused):
            raise TransferFailed(reply)
        if isinstance(reply, Chunk) and (reply.token, reply.offset) == (stored.token, received):
            data = reply.data[: size - received]
            write(received, data)
            hasher.update(data)
            received += len(data)
            pace.progress(result.now)
        elif reply is None and result.now >= pace.until(result.now):
            pace.silent(result.now)
            asked = received
    if hasher.digest() != stored.body.digest:
        raise Damaged


def upload(
    envelope: tuple[int, int, int],
    stored: Stored,
    body: Body,
    now: float,
    stall_timeout: float,
    chunk: int = CHUNK_BYTES,
) -> Transfer:
    """Send Global the bytes of a large value, for a SET that names it. Raises TransferFailed."""
    assert isinstance(stored.body, Large)
    size = stored.body.size
    pace = _Pace(now, stall_timeout)
    sent = received = 0
    credit = chunk
    while received < size:
        while sent < min(size, received + credit):
            result = yield SendChunk(
                Stage(*envelope, stored, sent, body[sent : sent + chunk]), pace.end
            )
            if not result.sent:
                raise TransferFailed(None)
            sent = min(size, sent + chunk)
        result = yield ReceiveReply(pace.until(result.now))
        reply = result.reply
        if isinstance(reply, Refused) and reply.refusal is not Refusal.BUSY:  # BUSY: keep waiting
            raise TransferFailed(reply)
        if isinstance(reply, Staged) and reply.token == stored.token:
            if reply.received > received:
                pace.progress(result.now)
            # Less than before means that Global has dropped the upload. Then silence follows, and
            # all is sent again.
            received = min(size, reply.received)
            credit = max(chunk, reply.credit)
        elif reply is None and result.now >= pace.until(result.now):
            pace.silent(result.now)
            sent = received
