"""Partial files: who writes them, and what happens to one whose writer dies.

A value is written to a file named ``<token>.part``, which its writer keeps locked. So one process
on the host writes it. When that process dies, its lock ends, and the next process that asks takes
over. Sealing gives the file its final name; from then on it never changes.

A process that gets the lock may have opened the file before its former writer sealed or abandoned
it. So it checks, with the lock, that the file is still the one in the folder.

A :class:`PartialFile` belongs to the folder, its :class:`~dstore.shm.writer.Writer` to the caller.
When the Writer is lost, in a KeyboardInterrupt perhaps, the partial file is removed at the next
opportunity.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
import weakref
from collections.abc import Iterator

from dstore.shm import files, locks
from dstore.shm.directory import Directory
from dstore.shm.files import COPIES, GLOBAL, PART_NAME

CLAIM_TRIES = 100
"""Tries to lock a file that other processes keep removing, before it is left to them."""
CLAIM_SECONDS = 60.0
"""Seconds for which an empty file may be one that its writer has created and not yet locked."""


class NoRoom(Exception):
    """There is no room in shared memory: the caller keeps the value in memory of its own."""


class PartialFile:
    """A partial file that this process writes and has locked. Safe from any thread.

    ``owner`` is the memory through which it is written. ``writer`` refers to the Writer, and
    ``unreserved`` is how many bytes of the value have no memory yet.
    """

    def __init__(self, siblings: PartialFiles, name: str, file: io.FileIO, owner: object) -> None:
        self.name = name
        self.owner = owner
        self.over = False
        self.writer: weakref.ref[object] | None = None
        self.unreserved = 0
        self._siblings = siblings
        self._here = siblings.directory
        self._file = file
        self._uses = 0
        self._process = os.getpid()

    @property
    def lost(self) -> bool:
        """Whether its Writer is gone, so that it will never be sealed."""
        return self.writer is not None and self.writer() is None

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[int]:
        """The descriptor, which stays open in this block. Raises NoRoom if the file is over."""
        with locks.process_lock:
            self._check()
            self._uses += 1
        try:
            yield self._file.fileno()
        finally:
            with locks.process_lock:
                self._uses -= 1
                self._close_if_unused()

    def seal(self, final: str) -> bool:
        """Give the file its final name. Raises NoRoom if the file is over.

        False if the whole folder was removed: views stay good, but no other process finds it.
        """
        named = False
        with locks.process_lock:
            self._check()
            with contextlib.suppress(OSError):
                if files.is_linked(self._file, self._here, self.name):
                    # Read-only after it has its name, not before: if the writer dies in between,
                    # the next one must open the file for writing to lock it.
                    fd = self._here.fd
                    os.rename(self.name, final, src_dir_fd=fd, dst_dir_fd=fd)
                    named = True
                    os.fchmod(self._file.fileno(), 0o400)
                    files.touch(self._file.fileno())
            self.abandon()
        return named

    def abandon(self) -> None:
        """Remove the file unless it is sealed, and give up the lock. Idempotent."""
        with locks.process_lock:
            if self.over:
                return
            with contextlib.suppress(OSError):
                if files.is_linked(self._file, self._here, self.name):
                    files.unlink(self._here, self.name, self._file)
            self.over = True
            self._siblings.forget(self)
            self._close_if_unused()

    def remove_sealed(self, final: str) -> None:
        """Remove the file after it was sealed, also when the folder has been left. Idempotent."""
        if self._process == os.getpid():  # the parent's files stay
            files.remove(self._here, final)

    def forked(self) -> None:
        """In a forked child: leave the file to the parent, which goes on writing."""
        self.over = True
        self._file.close()

    def _check(self) -> None:
        """Raise NoRoom if the file is over."""
        if self.over:
            raise NoRoom("the file was sealed or abandoned, or is a parent process's")

    def _close_if_unused(self) -> None:
        # Not while a thread writes: the number of the descriptor would soon be another file's.
        if self.over and not self._uses:
            self._file.close()


class PartialFiles:
    """The partial files that this process writes in the folder of an epoch."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._by_name: dict[str, PartialFile] = {}

    def claim(self, name: str, owner: object) -> PartialFile | None:
        """Begin to write the file with this name. Returns None if another thread or process does.

        A file that a dead writer has left is removed and created again. The caller holds
        ``locks.process_lock``.
        """
        here = self.directory
        mine = self._by_name.get(name)
        if mine is not None:
            if not mine.lost:
                return None
            mine.abandon()
        for _ in range(CLAIM_TRIES):
            file = files.open_writable(here, name, create=True)
            claimed = None
            try:
                locked = locks.try_exclusive(file)
                if not files.is_linked(file, here, name):
                    continue
                if not locked:
                    return None
                if os.fstat(file.fileno()).st_size:
                    files.unlink(here, name, file)
                    continue
                claimed = self._by_name[name] = PartialFile(self, name, file, owner)
                return claimed
            finally:
                if claimed is None:
                    file.close()
        return None

    def forget(self, file: PartialFile) -> None:
        self._by_name.pop(file.name, None)

    def abandon_all(self, owner: object | None = None) -> None:
        """Abandon the files of one owner, or of all."""
        for file in list(self._by_name.values()):
            if owner is None or file.owner is owner:
                file.abandon()

    def unreserved(self) -> int:
        """Return how many bytes of the values that are being written have no memory yet."""
        with locks.process_lock:
            return sum(file.unreserved for file in self._by_name.values() if not file.lost)

    def sweep(self) -> bool:
        """Remove the partial files whose writers are dead or lost. Returns whether any was."""
        swept = False
        with locks.process_lock:
            for file in list(self._by_name.values()):
                if file.lost:
                    file.abandon()
                    swept = True
            for folder in (GLOBAL, COPIES):
                with contextlib.suppress(OSError), self.directory.listed(folder) as entries:
                    for entry in entries:
                        name = f"{folder}/{entry.name}"
                        if PART_NAME.fullmatch(entry.name) and name not in self._by_name:
                            swept |= _remove_if_dead(self.directory, name)
        return swept

    def forked(self) -> None:
        """In a forked child: none of these is this process's."""
        for file in self._by_name.values():
            file.forked()
        self._by_name.clear()


def _remove_if_dead(here: Directory, name: str) -> bool:
    with contextlib.suppress(OSError):
        status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
        empty = not (status.st_size or status.st_blocks)
        if not empty or abs(time.time() - status.st_mtime) > CLAIM_SECONDS:
            with files.open_writable(here, name, create=False) as file:
                if locks.try_exclusive(file) and files.is_linked(file, here, name):
                    files.unlink(here, name, file)
                    return True
    return False
