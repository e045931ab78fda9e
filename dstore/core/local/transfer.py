"""A large value on its way, chunk by chunk, in either direction.

Both sides bound what is under way. To download, a Local asks for a few chunks ahead of what it has:
Global keeps nothing about it, and sends what it is asked for. To upload, it sends as much ahead of
what Global confirms as Global's last answer allows (its credit).

Chunks of one transfer travel on one channel, in their order. When nothing comes for a while,
because a connection was lost with what was on it, the transfer goes on from the last byte that
arrived. It ends when nothing has come for the whole of its stall_timeout; a large value on a slow link
may take as long as it moves.

Like operations, these are generators: they yield what is to be sent and what is waited for. They
do not touch the LocalState, so that its lock is free while they run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from dstore.config import CHUNK_BYTES, CHUNKS_AHEAD
from dstore.protocol.content import Hasher
from dstore.protocol.messages import (
    Buffer,
    Chunk,
    Fetch,
    Large,
    Refusal,
    Refused,
    Reply,
    RequestMessage,
    Stage,
    Staged,
    Stored,
)

QUIET_FIRST, QUIET_MAX = 0.5, 2.0
"""Seconds of silence after which a transfer goes on from what has arrived, with doubling pauses."""


class Body(Protocol):
    """The bytes of a value, or what reads them, by slices."""

    def __getitem__(self, where: slice, /) -> Buffer: ...


Write: TypeAlias = Callable[[int, Buffer], None]
"""Takes a part of a value: its offset, and its bytes, which do not stay."""


class Send(NamedTuple):
    """Send a message on the channel, if Global can be reached until ``until``."""

    message: RequestMessage
    until: float


class Receive(NamedTuple):
    """Wait for the next reply that bears the transfer's number, or until ``until``."""

    until: float


class Moved(NamedTuple):
    """What came of a step: the time, and the reply, or whether the message left."""

    now: float
    reply: Reply | None = None
    sent: bool = False


T = TypeVar("T")
Transfer: TypeAlias = Generator[Send | Receive, Moved, T]


class TransferFailed(Exception):
    """The value did not arrive. ``refusal`` is what Global said, None if it was silent."""

    def __init__(self, refusal: Refused | None) -> None:
        super().__init__(refusal)
        self.refusal = refusal


class Damaged(Exception):
    """All bytes arrived and are not those of the digest."""


class _Pace:
    """When to try again, and when to give up."""

    def __init__(self, now: float, stall_timeout: float) -> None:
        self._stall_timeout = stall_timeout
        self._quiet = QUIET_FIRST
        self.moved(now)

    def moved(self, now: float) -> None:
        """Something has arrived."""
        self._quiet = min(QUIET_FIRST, self._stall_timeout / 4)
        self.end = now + self._stall_timeout
        self._next = now + self._quiet

    def until(self, now: float) -> float:
        """Until when to wait for the next reply."""
        return min(self.end, max(now, self._next))

    def silent(self, now: float) -> None:
        """Nothing has come until then. Raises TransferFailed at the end of all stall_timeout."""
        if now >= self.end:
            raise TransferFailed(None)
        self._quiet = min(2 * self._quiet, QUIET_MAX)
        self._next = now + self._quiet


def download(
    envelope: tuple[int, int, int],
    stored: Stored,
    write: Write,
    now: float,
    stall_timeout: float,
    chunk: int = CHUNK_BYTES,
) -> Transfer[None]:
    """Fetch a large value and ``write`` each part of it (offset, bytes), in their order.

    ``envelope`` is epoch, session and the transfer's request number; ``stall_timeout`` is in seconds.
    Raises TransferFailed, and Damaged.
    """
    assert isinstance(stored.body, Large)
    size = stored.body.size
    hasher = Hasher(stored.codec)
    pace = _Pace(now, stall_timeout)
    asked = received = 0
    while received < size:
        while asked < min(size, received + CHUNKS_AHEAD * chunk):
            ask = Fetch(*envelope, stored.token, asked, min(chunk, size - asked))
            moved = yield Send(ask, pace.end)
            if not moved.sent:
                raise TransferFailed(None)
            asked += ask.length
        moved = yield Receive(pace.until(moved.now))
        reply = moved.reply
        if isinstance(reply, Refused):
            raise TransferFailed(reply)
        if isinstance(reply, Chunk) and (reply.token, reply.offset) == (stored.token, received):
            data = reply.data[: size - received]
            write(received, data)
            hasher.update(data)
            received += len(data)
            pace.moved(moved.now)
        elif reply is None and moved.now >= pace.until(moved.now):
            pace.silent(moved.now)
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
) -> Transfer[None]:
    """Send the bytes of a large value to Global, which keeps them for a SET that names them.

    Raises TransferFailed.
    """
    assert isinstance(stored.body, Large)
    size = stored.body.size
    pace = _Pace(now, stall_timeout)
    sent = received = 0
    credit = chunk
    while received < size:
        while sent < min(size, received + credit):
            moved = yield Send(Stage(*envelope, stored, sent, body[sent : sent + chunk]), pace.end)
            if not moved.sent:
                raise TransferFailed(None)
            sent = min(size, sent + chunk)
        moved = yield Receive(pace.until(moved.now))
        reply = moved.reply
        if isinstance(reply, Refused) and reply.refusal is not Refusal.BUSY:  # then it waits
            raise TransferFailed(reply)
        if isinstance(reply, Staged) and reply.token == stored.token:
            if reply.received > received:
                pace.moved(moved.now)
            # Less than before: Global has dropped it. Silence will follow, then all is sent again.
            received = min(size, reply.received)
            credit = max(chunk, reply.credit)
        elif reply is None and moved.now >= pace.until(moved.now):
            pace.silent(moved.now)
            sent = received
