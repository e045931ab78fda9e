"""Large values in a process: in the shared memory of the host, or else in its own memory.

The bytes of a value are in one file per host, named by the token. The first process that needs them
fetches them from Global into that file; the others wait and then map it; see :mod:`dstore.shm`. A
file never tells a Node that a key has a value: the Node looks for a token that Global has just
named, or that its own valid cache names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from dstore import codecs
from dstore.client.files import PIECE_BYTES, FileToStore
from dstore.codecs import Encoded
from dstore.core.local.cache import SEEN, FormerLarge, MappedBody
from dstore.core.local.membership import Entry
from dstore.core.local.steps import Body, FetchBody, Transfer, Write
from dstore.core.local.transfer import download
from dstore.errors import NodeClosed, ValueCorrupt
from dstore.protocol import content
from dstore.protocol.messages import Buffer, Large, Stored
from dstore.runtime import clock, native
from dstore.runtime.background import BACKGROUND_BYTES, janitor
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.shm import WARNING_SECONDS, HostMemory, NoRoom, Writer, clean, is_whole, open_memory
from dstore.shm.bulk import fresh_memory

log = Log("dstore.local")

CUT_SHORT = "is damaged: another process has cut its file in shared memory short"
PAUSE_FIRST, PAUSE_MAX = 0.0005, 0.02
"""Seconds between two looks at a file that another process is writing, with doubling pauses."""

Move = Callable[[Transfer], None]
"""A function that carries out a transfer on a channel."""


class Upload(NamedTuple):
    """A large value to be written: its bytes, to be sent, and what the cache may hold.

    ``writer`` has put the bytes into the shared memory of the host, if they are there.
    """

    stored: Stored
    body: Body
    mapped: MappedBody | None
    writer: Writer | None = None

    def drop(self) -> None:
        """Remove the bytes from shared memory: the value has not been bound."""
        if self.writer is not None:
            self.writer.discard()


@dataclass
class _SharedBody:
    """The bytes of a value in shared memory, by slices, to be sent.

    ZeroMQ would end the process if it found that a file has been cut short, so they are read.
    """

    memory: HostMemory
    token: bytes
    view: memoryview

    def __getitem__(self, where: slice) -> Buffer:
        """Raises ValueCorrupt if the bytes are lost."""
        start, stop, _ = where.indices(len(self.view))
        piece = self.memory.read(self.token, len(self.view), start, stop - start, self.view)
        if piece is None:
            raise ValueCorrupt(f"the value {CUT_SHORT}")
        return piece


def check_whole(entry: Entry, stored: Stored) -> None:
    """Raise ValueCorrupt for an entry whose file was cut short: to read it would end the process.

    The Node drops such an entry within two seconds, and then fetches the value again.
    """
    if entry.shared is not None and not _is_whole(stored):
        raise ValueCorrupt(f"the value of {entry.key!r} {CUT_SHORT}")


def _is_whole(value: object) -> bool:
    return (
        not isinstance(value, Stored)
        or not isinstance(value.body, memoryview)
        or is_whole(value.body)
    )


random16: Callable[[], bytes] = partial(os.urandom, 16)
"""Returns 16 random bytes, which are unique."""


class LargeValues:
    """The large values of one Local: at most ``limit`` bytes per host in the folder ``shm``.

    Safe from any thread.
    """

    def __init__(self, shm: str | None, limit: int | None) -> None:
        self._shm = shm
        self._limit = limit
        self._lock = native.Lock()
        self._epoch = 0
        self._ended_epochs = {0}
        self._memory: HostMemory | None = None
        self._former: HostMemory | None = None  # of the epoch before, while its values are offered
        self._closed = False
        self._rate_limited_log = RateLimitedLog(log, WARNING_SECONDS)

    # ---- the folder -----------------------------------------------------------------------

    def joined(self, epoch: int) -> None:
        """Note the epoch that the Local has joined, and tidy up.

        The folder of another epoch is held until :meth:`forget_former`, since values may be taken
        from it.
        """
        with self._lock:
            surplus = None if epoch == self._epoch else self._leave()
        if surplus is not None:
            surplus.close(wait=False)
        clean(self._shm)

    @property
    def has_former(self) -> bool:
        """Whether the folder of a former epoch is held."""
        return self._former is not None

    def forget_former(self) -> None:
        """Leave the folder of the former epoch: no value will be taken from it."""
        with self._lock:
            former, self._former = self._former, None
        if former is not None:
            former.close(wait=False)

    def close(self) -> None:
        """Leave the folder. Values that were handed out stay readable. Idempotent."""
        with self._lock:
            self._closed = True
            left = [self._leave(), self._former]
            self._former = None
        for each in left:
            if each is not None:
                each.close()

    def _leave(self) -> HostMemory | None:
        """End the present epoch, whose memory becomes the former one.

        Returns the memory that was the former one, to be closed without the lock.
        """
        self._ended_epochs.add(self._epoch)
        former, self._memory, self._epoch = self._memory, None, 0
        if former is None:
            return None
        former, self._former = self._former, former
        return former

    def _memory_of(self, epoch: int) -> HostMemory | None:
        """Return the memory for an epoch. None if there is none, or the epoch has ended."""
        with self._lock:
            self._check_open()
            if epoch == self._epoch or epoch in self._ended_epochs:
                return self._memory if epoch == self._epoch else None
        surplus = opened = open_memory(epoch, root=self._shm, limit=self._limit)
        with self._lock:
            if not self._closed and epoch != self._epoch and epoch not in self._ended_epochs:
                surplus = self._leave()
                self._memory, self._epoch = opened, epoch
            memory = self._memory if epoch == self._epoch else None
        if surplus is not None:
            surplus.close(wait=False)
        return memory

    def _check_open(self) -> None:
        if self._closed:
            raise NodeClosed("the Node was closed during the call")

    # ---- writing --------------------------------------------------------------------------

    def keep(self, epoch: int, encoded: Encoded) -> Upload:
        """Store a value so that it can be uploaded, and read by the Nodes of this host."""
        written = self._written(epoch, encoded.codec, encoded.size, encoded.parts)
        if written is not None:
            return written
        body = _own_copy(encoded)
        digest = content.digest(encoded.codec, body)
        stored = Stored(random16(), encoded.codec, Large(encoded.size, digest))
        return Upload(stored, body, MappedBody(body, shared=False))

    def keep_file(self, epoch: int, file: FileToStore) -> Upload:
        """Do what :meth:`keep` does for the bytes of a file, without private memory.

        Raises OSError, and ValueError if the file gets shorter meanwhile.
        """
        written = self._written(epoch, codecs.BYTES, file.size, file.pieces())
        if written is not None:
            return written
        stored = Stored(random16(), codecs.BYTES, Large(file.size, file.digest()))
        # Not for the cache, since the owner of the file may change it.
        return Upload(stored, file, None)

    def _written(self, epoch: int, codec: str, size: int, parts: Iterable[Buffer]) -> Upload | None:
        """Write a value to the shared memory. Returns None if there is none, or no room."""
        token = random16()
        memory = self._memory_of(epoch)
        if memory is None:
            return None
        try:
            writer = memory.begin(token, size)
        except NoRoom as error:
            self._warn("a value goes to the memory of this process alone", error)
            return None
        if writer is None:
            return None
        hasher = content.Hasher(codec)
        try:
            with writer:
                offset = 0
                for piece in _unchanging(_pieces(parts)):
                    writer.write(offset, piece)
                    hasher.update(piece)
                    offset += len(piece)
                body = writer.seal()
        except NoRoom:  # the folder was left meanwhile, as when the Node is closed
            return None
        stored = Stored(token, codec, Large(size, hasher.digest()))
        shared = _SharedBody(memory, token, body)
        return Upload(stored, shared, MappedBody(body, shared=True), writer)

    # ---- reading --------------------------------------------------------------------------

    def obtain(self, step: FetchBody, move: Move, check: Callable[[], None]) -> MappedBody | None:
        """Return the bytes of a value: from shared memory, or from Global by means of ``move``.

        Returns None if they went to ``step.into``, since there is no shared memory. Raises what
        ``move`` and ``check`` raise, and NodeClosed. ``check`` is called now and then.
        """
        token, size = step.stored.token, step.stored.size
        waiting = _StallTimer(step.stall_timeout)
        while (memory := self._memory_of(step.envelope[0])) is not None:
            check()
            view = memory.find(token, size)
            former = self._former
            if view is None and former is not None:  # the offers have not come to it yet
                view = memory.take(former, token, token, size)
            if view is not None:
                return MappedBody(view, shared=True)
            try:
                writer = memory.begin(token, size)
            except NoRoom as error:
                self._warn("a value is fetched for this process alone", error)
                break
            if writer is not None:
                try:
                    with writer:
                        self._fetch(step, writer.write, move)
                        return MappedBody(writer.seal(), shared=True)
                except NoRoom:  # the folder was left meanwhile, as when the Node is closed
                    continue
            if not waiting.pause(memory.progress(token)):
                break  # the process that fetches the value makes no progress
        if step.into is not None:
            self._fetch(step, step.into, move)
            return None
        buffer = fresh_memory(size)

        def write(offset: int, data: Buffer) -> None:
            buffer[offset : offset + len(data)] = data

        self._fetch(step, write, move)
        return MappedBody(buffer.toreadonly(), shared=False)

    def take_back(self, epoch: int, stored: Stored, former: FormerLarge) -> MappedBody | None:
        """Return the bytes that a large value had in a former session, without fetching them.

        ``stored`` is how it is bound now, perhaps with another token. None if they are gone: then
        the value is fetched when it is needed.
        """
        if former.view is not None:
            return MappedBody(former.view, shared=False)
        memory = self._memory_of(epoch)
        if memory is None:
            return None
        source = self._former or memory
        view = memory.take(source, former.token, stored.token, stored.size)
        return None if view is None else MappedBody(view, shared=True)

    @staticmethod
    def _fetch(step: FetchBody, write: Write, move: Move) -> None:
        move(download(step.envelope, step.key, step.stored, write, clock.now(), step.stall_timeout))

    def _warn(self, what: str, error: NoRoom) -> None:
        # As text: an exception that a log keeps would keep the folder open.
        self._rate_limited_log.warning("%s: %s", what, str(error))

    # ---- upkeep ---------------------------------------------------------------------------

    def drop(self, tokens: Iterable[bytes]) -> None:
        """Remove the files of these tokens. Processes that have mapped one keep it."""
        memory = self._memory
        if memory is not None:
            for token in tokens:
                memory.drop(token)

    def evicted(self, entries: Iterable[Entry]) -> list[bytes]:
        """Return the tokens of entries whose files were evicted or cut short.

        Files of other entries that were read since the last time are touched.
        """
        memory, gone = self._memory, []
        if memory is not None:
            for entry in entries:
                assert entry.shared is not None
                value = entry.value
                size = value.size if isinstance(value, Stored) else None
                if not memory.linked(entry.shared, size) or not _is_whole(value):
                    gone.append(entry.shared)
                elif entry.visited == 1:  # and not SEEN
                    entry.visited = SEEN
                    memory.touch(entry.shared)
        return gone


def release(entries: list[Entry]) -> None:
    """Clear a list of entries, in the background if that may release much memory."""
    values = (entry.value for entry in entries)
    if sum(value.size for value in values if isinstance(value, Stored)) >= BACKGROUND_BYTES:
        janitor.do(entries.clear)
    else:
        entries.clear()


class _StallTimer:
    """Waits for a file that another process is writing, while that makes progress."""

    def __init__(self, stall_timeout: float) -> None:
        self._stall_timeout = stall_timeout
        self._pause = PAUSE_FIRST
        self._seen: int | None = None
        self._end = clock.now() + stall_timeout

    def pause(self, progress: int | None) -> bool:
        """Wait a little. Returns False if there has been no progress for too long."""
        now = clock.now()
        if progress != self._seen:
            self._seen = progress
            self._end = now + self._stall_timeout
        elif now >= self._end:
            return False
        native.sleep(self._pause)
        self._pause = min(2 * self._pause, PAUSE_MAX)
        return True


def _pieces(parts: Iterable[Buffer]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]


def _unchanging(pieces: Iterable[memoryview]) -> Iterator[memoryview]:
    """Copy pieces that others may write to. Each piece is valid until the next."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    for piece in pieces:
        if type(piece.obj) is bytes:
            yield piece
        else:
            copy = buffer[: len(piece)]
            copy[:] = piece
            yield copy


def _own_copy(encoded: Encoded) -> memoryview:
    """Return the whole body, which cannot be changed any more."""
    if len(encoded.parts) == 1 and type(encoded.parts[0]) is bytes:
        return memoryview(encoded.parts[0])
    buffer = fresh_memory(encoded.size)
    offset = 0
    for piece in _pieces(encoded.parts):
        buffer[offset : offset + len(piece)] = piece
        offset += len(piece)
    return buffer.toreadonly()
