"""Large values on disk, in the data folder of a Global: one file per value.

::

    DIR/large/                          mode 0700
        <token, 32 hex digits>          kept: the whole value, which never changes
        <token, 32 hex digits>.part     partial: being written, or left by a crash

A value is kept before its row is committed, and dropped after the removal of its row has been
committed. So a crash at any moment leaves a row with its whole file, or a file that no row names:
an orphan, which is removed at the next start. A file gets its final name only when its bytes are on
disk and agree with the digest that the row will have.

A token may come again after :meth:`LargeFiles.drop`, when the same upload starts again. Then the
janitor may not have removed the old file yet. So a removal is first noted in a set. The file is
removed only by the thread that takes the token out of the set, and publishing a new file takes it
out as well.

A backup runs in another process, and holds a shared ``flock`` on the folder: see
:meth:`LargeFiles.removals_deferred`. A file is removed only under an exclusive one. The kernel
releases the lock of a process that ends, so a backup that was killed holds nothing up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from io import FileIO

from dstore.config import CHUNK_BYTES
from dstore.errors import StoreFull, ValueCorrupt
from dstore.protocol import content
from dstore.protocol.messages import Buffer, Large, Stored
from dstore.runtime import clock, native
from dstore.runtime.background import janitor
from dstore.runtime.logs import Log, RateLimitedLog
from dstore.server.data.folder import sync_folder
from dstore.shm import files
from dstore.shm.bulk import BufferPool
from dstore.shm.directory import Directory
from dstore.shm.files import PART, PART_NAME, SEALED_NAME

log = Log("dstore.global")

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a file system that has no room for a value, and is sound otherwise."""
NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}
"""Errors of a file that cannot be hard-linked: it has to be copied."""
NO_RESERVING = {errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of a file system that cannot reserve room for a file."""
LOST = {errno.ENOENT, errno.EIO}
"""Errors that say that a value is lost, and not that it cannot be read at this moment."""
TEND_EVERY = 1.0
"""Seconds after a drop, and between two tries to remove a file that a backup holds up."""
NEVER = float("inf")
UNKNOWN = -1
"""The size of a value that has a file, and no row that is sound."""

Read = Callable[[bytes, int, int], "memoryview | None"]
"""Like :meth:`dstore.core.engine.Bulk.read`."""


class LargeFiles:
    """The large values in the folder ``path``, which is created if it does not exist.

    Call :meth:`remove_orphans` first: until then no value of an earlier run is found. Then all
    methods are safe from any thread. Global's thread calls ``in``, :meth:`read` and :meth:`drop`,
    which wait for no other thread that writes to the disk; :meth:`read` may wait for the disk
    itself. The others may take long and are for other threads.

    At ``tend_at``, by the clock of leases, :meth:`tend` is due; Global's thread reads it.

    It holds one descriptor, and each call that is under way at most two more.

    The constructor raises OSError.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._directory: Directory | None = Directory(os.open(path, flags), path)
        # Also if it was there: it may have been created just before a crash.
        sync_folder(os.path.dirname(os.path.abspath(path)))
        self._sizes: dict[bytes, int] = {}
        self._under_way: set[bytes] = set()  # being kept, and not dropped meanwhile
        self._to_remove: set[bytes] = set()  # dropped, and the file may still be there
        self._bytes = 0
        self.tend_at = NEVER
        self._lock = native.Lock()  # guards the above. Never held during a system call
        self._names = native.Lock()  # held while a final name is given or removed
        self._buffers = BufferPool()
        self._log = RateLimitedLog(log)

    def __repr__(self) -> str:
        state = "closed" if self._directory is None else "open"
        return (
            f"<LargeFiles {state} values={len(self._sizes)} under_way={len(self._under_way)} "
            f"to_remove={len(self._to_remove)} in {self.path}>"
        )

    def __contains__(self, token: bytes) -> bool:
        """Return whether there is a file of this value that was not dropped, sound or not."""
        return token in self._sizes

    def _opened(self) -> Directory:
        """Return the folder, which stays open while it is referred to. Raises OSError."""
        if (directory := self._directory) is None:
            raise OSError(errno.EBADF, "the folder of the large values is closed", self.path)
        return directory

    def figures(self) -> dict[str, int]:
        """Return how many values are kept, how many bytes they have, and what is to be removed."""
        return {
            "large_values": len(self._sizes),
            "large_bytes": self._bytes,
            "large_to_remove": len(self._to_remove),
        }

    # ---- writing --------------------------------------------------------------------------

    def keep(self, stored: Stored, read: Read) -> None:
        """Make a value durable. When this returns, a crash of the system does not lose it.

        ``read`` returns the bytes of the value piece by piece. Nothing is done if the value is kept
        already. Unless this returns, the value is not kept. Raises StoreFull if the disk is full,
        ValueCorrupt if the bytes do not have the digest of ``stored``, cannot be read or are
        dropped meanwhile, and OSError if the disk fails; what else was written may be lost then.
        """
        token = stored.token
        with self._lock:
            size = self._sizes.get(token)
            if size is None:
                self._under_way.add(token)
        if size == stored.size:
            return
        if size is not None:
            raise ValueCorrupt(f"another value has the token {token.hex()}; store this one again")
        try:
            self._write(stored, read)
            self._publish(token, stored.size)
        except BaseException as error:
            self._give_up(token)
            if isinstance(error, OSError) and error.errno in FULL:
                raise StoreFull(
                    f"a value of {stored.size:,} bytes finds no room in {self.path}: "
                    f"{error.strerror}; delete something, or free space on this disk"
                ) from error
            raise

    def _write(self, stored: Stored, read: Read) -> None:
        """Write a value to its partial file, and to the disk."""
        here, name = self._opened(), stored.token.hex() + PART
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=here.fd)
        with files.create(here, name) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, stored.size)  # a full disk is noticed early
            except OSError as error:
                if error.errno not in NO_RESERVING:
                    raise
            hasher, offset = content.Hasher(stored.codec), 0
            while offset < stored.size:
                piece = read(stored.token, offset, min(CHUNK_BYTES, stored.size - offset))
                if not piece:
                    raise ValueCorrupt("the bytes of the value are lost; store it again")
                hasher.update(piece)
                _write_all(file, piece, offset)
                offset += len(piece)
            if hasher.digest() != digest_of(stored):
                raise ValueCorrupt("the value was damaged while it was in memory; store it again")
            os.fsync(file.fileno())

    def _publish(self, token: bytes, size: int) -> None:
        """Give a partial file its final name, and write that to the disk."""
        here, name = self._opened(), token.hex()
        with self._names:
            with self._lock:
                self._check_wanted(token)
                self._to_remove.discard(token)  # else the janitor would remove the new file
            os.rename(name + PART, name, src_dir_fd=here.fd, dst_dir_fd=here.fd)
        os.fsync(here.fd)
        with self._lock:
            self._check_wanted(token)
            self._under_way.discard(token)
            self._sizes[token] = size
            self._bytes += size

    def _check_wanted(self, token: bytes) -> None:
        if token not in self._under_way:
            raise ValueCorrupt("the value was dropped while it was written to the disk")

    def _give_up(self, token: bytes) -> None:
        """Remove what :meth:`keep` has written."""
        with self._lock:
            self._under_way.discard(token)
            self._to_remove.add(token)
        with contextlib.suppress(OSError):  # else it is removed at the next start
            os.unlink(token.hex() + PART, dir_fd=self._opened().fd)
        self._remove(token)

    # ---- reading --------------------------------------------------------------------------

    def read(self, token: bytes, offset: int, count: int) -> memoryview | None:
        """Return at most ``count`` bytes from ``offset`` on, fewer at the end of the value.

        Returns None if the value is not kept, and if its file is lost or has another size or
        cannot be read; that is logged. The bytes are a copy, read-only.
        """
        size = self._sizes.get(token, UNKNOWN)
        if size == UNKNOWN:
            return None
        try:
            part = self._read(token, size, offset, count)
        except OSError as error:
            self._warn(token, size, str(error))
            return None
        if part is None:
            self._warn(token, size, "its file was cut short or replaced")
        return part

    def _warn(self, token: bytes, size: int, reason: str) -> None:
        self._log.warning(
            "a large value of %s bytes cannot be read from %s: %s; "
            "restore the file from a backup, or delete the key",
            f"{size:,}",
            os.path.join(self.path, token.hex()),
            reason,
        )

    def _read(self, token: bytes, size: int, offset: int, count: int) -> memoryview | None:
        """Return a part of a file. None unless it has ``size`` bytes. Raises OSError."""
        with files.open_sealed(self._opened(), token.hex()) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            part = self._buffers.take(max(0, min(count, size - offset)))
            return part.toreadonly() if _read_all(file, part, offset) else None

    def verify(self, stored: Stored, done: Callable[[int], object] = int) -> bool:
        """Return whether the file of a value has its size and its digest.

        Reads the whole file, from memory if the system has it there. ``done`` is called with the
        number of bytes of each part. Raises OSError if the file is there and cannot be opened.
        """
        hasher = content.Hasher(stored.codec)
        try:
            for offset in range(0, stored.size, CHUNK_BYTES):
                part = self._read(stored.token, stored.size, offset, CHUNK_BYTES)
                if part is None:
                    return False
                hasher.update(part)
                done(len(part))
        except OSError as error:
            if error.errno not in LOST:
                raise
            return False
        return hasher.digest() == digest_of(stored)

    # ---- removing -------------------------------------------------------------------------

    def drop(self, token: bytes) -> None:
        """Remove a value, in the background. Does nothing if it is not kept.

        A :meth:`keep` of it that is under way in another thread will raise ValueCorrupt.
        """
        with self._lock:
            if token not in self._sizes and token not in self._under_way:
                return
            self._bytes -= max(0, self._sizes.pop(token, 0))
            self._under_way.discard(token)
            self._to_remove.add(token)
            self._tend_soon()
        janitor.do(partial(self._remove, token))

    def tend(self) -> None:
        """Try again to remove what a backup has held up. From Global's thread, at ``tend_at``."""
        with self._lock:
            left = list(self._to_remove)
            self.tend_at = clock.now() + TEND_EVERY if left else NEVER
        for token in left:
            janitor.do(partial(self._remove, token))

    def _remove(self, token: bytes) -> None:
        """Remove the file of a dropped value, unless that is deferred or the value came again."""
        with contextlib.ExitStack() as opened, self._names:
            with self._lock:
                here = self._directory
                if here is None or token not in self._to_remove:
                    return
            with _removal_allowed(here) as allowed:
                with self._lock:
                    if not allowed:
                        self._tend_soon()
                        return
                    self._to_remove.discard(token)
                # The name goes at once. The blocks of a large file are freed when it is closed,
                # after the lock was released: publishing a value need not wait for that.
                with contextlib.suppress(OSError):
                    opened.enter_context(files.open_sealed(here, token.hex()))
                self._unlink(here, token)

    def _unlink(self, here: Directory, token: bytes) -> None:
        try:
            os.unlink(token.hex(), dir_fd=here.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._log.warning(
                "a dropped value cannot be removed from %s before the next start: %s",
                self.path,
                str(error),
            )

    def _tend_soon(self) -> None:
        """See to it that :meth:`tend` is called. The caller holds ``_lock``."""
        self.tend_at = min(self.tend_at, clock.now() + TEND_EVERY)

    def lost(self, known: Mapping[bytes, int]) -> list[bytes]:
        """Return the tokens of ``known`` whose files are missing or have another size.

        ``known`` is that of :meth:`remove_orphans`, before which this is to be called: if any are
        lost, that one has to keep all files.
        """
        here = self._opened()

        def is_whole(token: bytes, size: int) -> bool:
            status = files.status(here, token.hex())
            return status is not None and status.st_size == size

        return [token for token, size in known.items() if not is_whole(token, size)]

    def remove_orphans(self, known: Mapping[bytes, int], *, keep_all: bool) -> list[bytes]:
        """Find the values of earlier runs, and remove what crashes have left. Call this once.

        ``known`` has the size in bytes of each large value that a row names, by its token. Partial
        files are removed, and so are orphans, unless ``keep_all``: then something in the folder
        is damaged, and a file may belong to a row that cannot be read. Such a file stays until
        :meth:`drop` or the next start. While a backup is at work, orphans are removed after it.
        Returns the tokens of the orphans, removed or not. Files with other names are ignored.
        Raises OSError.
        """
        here = self._opened()
        with here.listed() as entries:
            names = sorted(entry.name for entry in entries)
        for name in filter(PART_NAME.fullmatch, names):
            os.unlink(name, dir_fd=here.fd)
        kept = map(bytes.fromhex, filter(SEALED_NAME.fullmatch, names))
        orphans = [token for token in kept if token not in known]
        if orphans and not keep_all:
            with _removal_allowed(here) as allowed:
                for token in orphans if allowed else []:
                    os.unlink(token.hex(), dir_fd=here.fd)
            if not allowed:
                with self._lock:
                    self._to_remove.update(orphans)
                    self._tend_soon()
        with self._lock:
            self._sizes.update(known)
            self._bytes += sum(known.values())
            if keep_all:
                self._sizes.update(dict.fromkeys(orphans, UNKNOWN))
        return orphans

    @contextlib.contextmanager
    def removals_deferred(self) -> Iterator[None]:
        """In this block no Global, of any process, removes the file of a value from this folder.

        So a backup that begins the block, and then takes a snapshot of the rows, finds all files
        that these rows name. The values that are dropped meanwhile are removed afterwards. Raises
        OSError if the file system has no such locks.
        """
        held = Directory(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), self.path)
        try:
            fcntl.flock(held.fd, fcntl.LOCK_SH)
            yield
        finally:
            held.close()

    # ---- the whole folder -----------------------------------------------------------------

    def copy_to(
        self,
        target: LargeFiles,
        values: Iterable[Stored],
        *,
        link: bool = True,
        done: Callable[[int], object] = int,
    ) -> list[Stored]:
        """Put values into another folder: as hard links, or as copies on another file system.

        When this returns they are on disk there. A copy is compared with its digest, and a link
        with its size only. Without ``link`` all are copied. ``done`` is called with the number of
        bytes that are there in addition. Returns the values that are damaged or lost here, which
        are left out. Values that may be dropped meanwhile need :meth:`removals_deferred`. Raises
        StoreFull if there is no room, and OSError.
        """
        damaged = []
        for stored in values:
            try:
                if link and self._link_to(target, stored):
                    done(stored.size)
                else:
                    target.keep(stored, partial(self._read_for_copy, stored.size, done))
            except ValueCorrupt:
                damaged.append(stored)
        os.fsync(target._opened().fd)
        return damaged

    def _link_to(self, target: LargeFiles, stored: Stored) -> bool:
        """Make a hard link. False if there can be none. Raises ValueCorrupt and OSError."""
        here, there, name = self._opened(), target._opened(), stored.token.hex()
        status = files.status(here, name)
        if status is None or status.st_size != stored.size:
            raise ValueCorrupt(f"{os.path.join(self.path, name)} is lost or has another size")
        try:
            os.link(name, name, src_dir_fd=here.fd, dst_dir_fd=there.fd, follow_symlinks=False)
        except FileExistsError:
            return target.verify(stored)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return False
        return True

    def _read_for_copy(
        self, size: int, done: Callable[[int], object], token: bytes, offset: int, count: int
    ) -> memoryview | None:
        try:
            part = self._read(token, size, offset, count)
            done(count)
            return part
        except OSError as error:
            if error.errno not in LOST:
                raise
            return None

    def close(self) -> None:
        """Remove what is left to be removed, and close the folder. The values stay. Idempotent.

        Call it before the lock of the data folder is released: the next Global may keep a value
        under a token that was dropped here.
        """
        with self._lock:
            left = list(self._to_remove)
        for token in left:
            self._remove(token)
        with self._names:  # not while the janitor removes a file
            self._directory = None


@contextlib.contextmanager
def _removal_allowed(here: Directory) -> Iterator[bool]:
    """Yield whether files may be removed; during the block no backup begins.

    One thread at a time, since all of them use one descriptor. If the file system has no such locks
    then no backup can be at work either.
    """
    try:
        fcntl.flock(here.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        yield error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN)
        return
    try:
        yield True
    finally:
        fcntl.flock(here.fd, fcntl.LOCK_UN)


def digest_of(stored: Stored) -> bytes:
    """Return the digest of a large value, 32 bytes."""
    assert isinstance(stored.body, Large)
    return stored.body.digest


def _write_all(file: FileIO, data: Buffer, offset: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(file.fileno(), left, offset)
        offset += count
        left = left[count:]


def _read_all(file: FileIO, into: memoryview, offset: int) -> bool:
    """Fill a buffer from a file. Returns False if the file is too short for that."""
    left = into
    while left:
        count = os.preadv(file.fileno(), [left], offset)
        if not count:
            return False
        offset += count
        left = left[count:]
    return True
