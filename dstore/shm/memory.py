"""The large values of one epoch, shared by the processes of a host."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable
from functools import partial

from dstore.runtime.background import janitor
from dstore.runtime.logs import WARNING, Log, RateLimitedLog
from dstore.shm import files, folder, locks, mapping, room
from dstore.shm import root as roots
from dstore.shm.directory import Unusable
from dstore.shm.files import PART
from dstore.shm.folder import Folder
from dstore.shm.partial_files import NoRoom
from dstore.shm.room import Room
from dstore.shm.writer import Writer

log = Log("dstore.shm")

EPOCH_MAX = (1 << 64) - 1
WARNING_SECONDS = 60.0
"""Seconds between two warnings of one kind: what is wrong with a folder stays so."""
ENTER_RETRY_SECONDS = 1.0
"""Seconds until the next try to enter a folder again that could not be entered."""
FOLDER_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
"""Errors of a folder that was removed, or replaced by something else."""


class HostMemory:
    """One copy of each large value on this host. Safe from any thread.

    A reader loops: it calls :meth:`find`; without a result it calls :meth:`begin`, fetches the
    value and writes it. If ``begin`` returns None, another process or thread writes the value: the
    reader waits a little and looks again, since that one may finish or die. If ``begin`` raises
    NoRoom, the reader fetches the value into memory of its own.

    When it is closed, and in a forked child, it is empty: :meth:`find` finds nothing and
    :meth:`begin` raises NoRoom, but views stay readable for ever. When the folder was removed or
    replaced, the next :meth:`begin` enters a new one.

    Files are trusted to keep their contents, but not their sizes: a file that was cut short is not
    found and not read. But a process that touches the missing part of a file that it has mapped is
    ended by SIGBUS; the system has no other answer. So Global reads files and touches no mapping.
    """

    def __init__(self, root: str, epoch: int, entered: Folder, limit: int) -> None:
        self.path = entered.path
        self._root = root
        self._epoch = epoch
        self._entered: Folder | None = entered
        self._enter_at = float("-inf")
        self._log = RateLimitedLog(log, WARNING_SECONDS)
        self._room = Room(limit)

    def __repr__(self) -> str:
        state = "closed" if self._folder is None else "open"
        return f"<HostMemory {state} {self.path} limit={self._room.limit}>"

    @property
    def _folder(self) -> Folder | None:
        """The folder that was entered. It is held open while it is used."""
        entered = self._entered
        return entered if entered is not None and entered.alive else None

    # ---- reading --------------------------------------------------------------------------

    def find(self, token: bytes, size: int) -> memoryview | None:
        """Return the value, read-only, or None unless it is complete and has ``size`` bytes."""
        folder = self._folder
        return None if folder is None else files.find(folder.directory, token, size)

    def read(
        self,
        token: bytes,
        size: int,
        offset: int,
        count: int,
        mapped: memoryview | None,
        allocate: Callable[[int], bytearray | memoryview] = bytearray,
    ) -> memoryview | None:
        """Return a copy of a part of a value of ``size`` bytes, or None if the bytes are lost.

        It is read from the file; without a file, from ``mapped``, a view of the whole value.
        ``allocate`` returns the memory that it is read into.
        """
        folder = self._folder
        count = max(0, min(count, size - offset))
        if folder is not None:
            with contextlib.suppress(OSError, OverflowError):  # there is no file, for example
                return files.read(folder.directory, token, size, offset, count, allocate)
        return None if mapped is None else mapping.copied(mapped[offset : offset + count])

    def linked(self, token: bytes, size: int | None = None) -> bool:
        """Return whether the value is complete and has a name by which others can find it.

        With ``size``, a file of another size does not count. Such a file stays: if a good one
        replaced it, processes that have the damaged one mapped could not tell.
        """
        folder = self._folder
        return folder is not None and files.exists(folder.directory, token, size=size)

    def touch(self, token: bytes) -> None:
        """Record that the value was used, so that it is evicted later than others."""
        name, folder = files.sealed_name(token, for_global=False), self._folder
        if folder is not None:
            with contextlib.suppress(OSError):
                files.touch(name, folder.directory.fd)

    def progress(self, token: bytes) -> int | None:
        """Return a number that grows while a copy is written, or None if no process writes it."""
        name, folder = files.sealed_name(token, for_global=False) + PART, self._folder
        status = None if folder is None else files.status(folder.directory, name)
        return None if status is None else max(status.st_mtime_ns, status.st_ctime_ns)

    # ---- writing --------------------------------------------------------------------------

    def begin(self, token: bytes, size: int, *, for_global: bool = False) -> Writer | None:
        """Begin to write a value, with all of its memory reserved.

        Returns None if another process or thread is writing it, or has just written it. Copies are
        evicted to make room. Raises NoRoom.

        With ``for_global`` the file is Global's: such files are not limited and never evicted.
        Their memory is reserved, and room made for it, step by step while they are written, since
        nothing that Global does may take long. NoRoom says that there is not enough for the whole.
        """
        if not for_global and size > self._room.limit:
            raise NoRoom(f"{size:,} bytes are more than the limit of {self._room.limit:,}")
        try:
            folder, writer = self._claim(token, size, for_global)
            if writer is None:
                if self._unreadable(folder, token, size, for_global):
                    raise NoRoom("it is there, but has another size or cannot be mapped")
                return None
            try:
                if for_global:
                    self._room.reserve_first(folder, writer)
                else:
                    self._room.reserve_copy(folder, writer)
            except BaseException:
                writer.abandon()
                raise
            return writer
        except OSError as error:
            raise NoRoom(f"{size:,} bytes find no room: {error}") from error

    def _claim(self, token: bytes, size: int, for_global: bool) -> tuple[Folder, Writer | None]:
        """Claim the file, in a new folder if the folder is gone. Returns the folder as well."""
        folder = self._folder
        if folder is None:
            raise NoRoom("the shared memory is closed")
        try:
            return folder, self._claim_in(folder, token, size, for_global)
        except OSError as error:
            if error.errno not in FOLDER_GONE or (again := self._enter_again(folder)) is None:
                raise
        return again, self._claim_in(again, token, size, for_global)

    def _claim_in(self, folder: Folder, token: bytes, size: int, for_global: bool) -> Writer | None:
        final = files.sealed_name(token, for_global=for_global)
        with locks.process_lock:
            if folder is not self._folder:
                raise NoRoom("the shared memory is closed")
            file = folder.partial_files.claim(final + PART, self)
            if file is None:
                return None
            writer = Writer(file, final, size, partial(self._room.make, folder, for_global))
            # Another process may have sealed it just before the lock was ours.
            if files.exists(folder.directory, token, for_global=for_global):
                writer.abandon()
                return None
            return writer

    def _enter_again(self, lost: Folder) -> Folder | None:
        """Enter a new folder in place of a removed one. Returns None if that is impossible now."""
        with locks.process_lock:
            now = time.monotonic()
            if self._folder is not lost:
                return self._folder  # another thread has done it
            if now < self._enter_at:
                return None
            try:
                entered = folder.enter(self._root, self._epoch, tries=1)
            except (OSError, Unusable) as error:
                self._enter_at = now + ENTER_RETRY_SECONDS
                self._log.warning("%s cannot be used any more: %s", self.path, str(error))
                return None
            self._entered = entered
            lost.partial_files.abandon_all(self)
            folder.leave(lost)
        self._log.warning("%s was removed by another program; a new one was created", self.path)
        return entered

    def _unreadable(self, folder: Folder, token: bytes, size: int, for_global: bool) -> bool:
        """Return whether the value exists although :meth:`find` does not find it."""
        is_here = partial(files.exists, folder.directory, token, for_global=for_global)
        # It may be sealed or evicted at any moment. So this looks before and after.
        return is_here() and self.find(token, size) is None and is_here()

    def take(self, former: HostMemory, old: bytes, new: bytes, size: int) -> memoryview | None:
        """Make the value ``old`` of another memory a copy in this one, with the token ``new``.

        The caller knows that it is the value with this token. Returns a view of it, or None if it
        is not there. The bytes stay where they are, the file gets another name: a process that does
        the same, or evicts the file, finds it under one name, or both, or none. A copy loses its
        name in the other folder, since to evict it here would free nothing otherwise.
        """
        here, there = self._folder, former._folder
        if size > self._room.limit or here is None or there is None:
            return None
        view = self.find(new, size)
        if view is not None:
            return view
        with contextlib.suppress(OSError):
            view = files.link(there.directory, old, here.directory, new, size)
        if view is None:  # another process may have done it just now
            return self.find(new, size)
        if not self._keep_taken(here, new, size):
            return None
        files.remove(there.directory, files.sealed_name(old, for_global=False))
        return view

    def _keep_taken(self, here: Folder, token: bytes, size: int) -> bool:
        """Count a file that was linked. Returns whether it may be used."""
        copy = files.sealed_name(token, for_global=False)
        try:
            self._room.keep_limit(here, copy, size)
        except (NoRoom, OSError):
            files.remove(here.directory, copy)
            return False
        # A process that has begun to write the value may seal it in place of ours, which would
        # then take memory under no name.
        return self.progress(token) is None

    def adopt(self, token: bytes, size: int) -> bool:
        """Make a copy that a Node has written Global's own. Of two Globals one succeeds.

        False if there is no such copy, or it has another size.
        """
        folder = self._folder
        return folder is not None and files.adopt(folder.directory, token, size)

    # ---- removing -------------------------------------------------------------------------

    def drop(self, token: bytes, *, for_global: bool = False) -> None:
        """Remove a copy, or Global's own file, if it is there. Mappings of it stay good."""
        name, folder = files.sealed_name(token, for_global=for_global), self._folder
        if folder is not None:
            files.remove(folder.directory, name)

    def close(self, *, wait: bool = True) -> None:
        """Leave. The last process that leaves an epoch removes its folder. Idempotent.

        What is being written through this memory is abandoned. With ``wait``, closing the last
        memory of a process waits until the files that it removed are gone, which may take a while.
        Without it, that is done in the background before Python exits.
        """
        with locks.process_lock:
            entered, self._entered = self._entered, None
            if entered is None:
                return
            try:
                entered.partial_files.abandon_all(self)
            finally:
                folder.leave(entered)
        if wait and not folder.entered:
            janitor.wait()


def open_memory(
    epoch: int, *, root: str | None = None, limit: int | None = None
) -> HostMemory | None:
    """Open the shared memory of this host and user for one epoch.

    ``root`` is the folder to use: by default ``$DSTORE_SHM``, else /dev/shm. An empty string means
    that shared memory is switched off. ``limit`` is how many bytes the copies may take on this
    host, by default half of the file system.

    Returns None if shared memory cannot be used; the reason is logged once. A process may open an
    epoch several times, and closes each. Folders of other epochs that no process uses are removed.
    """
    if not 0 <= epoch <= EPOCH_MAX:
        raise ValueError(f"an epoch is not negative and has at most 64 bits: {epoch}")
    path = roots.chosen(root)
    if path is None:
        return None
    try:
        most = room.limit_default(path) if limit is None else limit
        entered = folder.enter(path, epoch)
    except (OSError, Unusable) as error:
        roots.log_once(WARNING, f"no shared memory, each process keeps its own copies: {error}")
        return None
    memory = HostMemory(path, epoch, entered, most)
    try:
        entered.partial_files.sweep()
        roots.clean(path)
    except BaseException:
        memory.close()
        raise
    return memory
