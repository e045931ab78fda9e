"""The folder of the host memberships: names, the locks of their owners, and what owners leave.

::

    <root>/dstore-<uid>/hosts/
        <name>.lock             locked by the owner of the name; the text is for people
        <name>.page             the page, linked under each name of its owner
        <name>-<16 hex digits>.table, .new
                                the host cache, and a page in the making, of the owner of the name

A name is a hash of an address of Global, or ``e`` and an epoch. There is one rule: **the process
that holds the lock of a name, and no other, creates and removes the files that begin with it.** So
what a killed owner has left can be removed by any process that gets the lock, without any look at
what the files contain.

A lock file is removed by the process that holds its lock. So a process that gets the lock checks
that the file is still there under its name, and starts over if not.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterable
from hashlib import blake2b

from dstore.runtime import native
from dstore.shm import directory, files, locks, page
from dstore.shm.directory import Directory, Unusable

HOSTS = "hosts"
LOCK, PAGE, TABLE, NEW = ".lock", ".page", ".table", ".new"
NAME_BYTES = 16
NAME = re.compile("([0-9a-f]{32}|e[0-9a-f]{16})(?=[.-])")
LOCK_TEXT_BYTES = 200
ENTER_TRIES = 100
"""Tries to enter the folder while other processes remove it when it is empty."""
LOCK_TRIES = 20
"""Tries to lock a name: a process that removes leftovers has the lock for a moment."""
LOCK_PAUSE = 0.005
"""Seconds between two tries to lock a name."""


class Owned(Unusable):
    """Another owner has the name. The message says which process it is."""


def name_of(address: str) -> str:
    """The name of a canonical address of Global."""
    raw = address.encode("utf-8", "surrogateescape")
    return blake2b(raw, digest_size=NAME_BYTES, person=b"dstore address").hexdigest()


def name_of_epoch(epoch: int) -> str:
    return f"e{epoch:016x}"


# ---- the folder -------------------------------------------------------------------------------


def enter(root: str) -> Directory:
    """Open the folder, and create it if it is missing. Raises Unusable and OSError."""
    base = directory.walk(root)
    user = files.user_folder()
    for tries_left in reversed(range(ENTER_TRIES)):
        try:
            base.make_folder(user)
            parent = base.open_private(user)
            parent.make_folder(HOSTS)
            return parent.open_private(HOSTS)
        except FileNotFoundError:  # another process has removed the empty folder just now
            if not tries_left:
                raise
    raise AssertionError


def look(root: str) -> Directory:
    """Open the folder. Raises FileNotFoundError if there is none, Unusable and OSError."""
    return directory.walk(root).open_private(files.user_folder()).open_private(HOSTS)


def remove_if_empty(here: Directory) -> None:
    """Remove the folder, and then the user's, if nothing is in it."""
    with contextlib.suppress(OSError):
        parent = here.open_folder("..")
        if not parent.has(HOSTS, here):
            return
        os.rmdir(HOSTS, dir_fd=parent.fd)
        base, user = parent.open_folder(".."), os.path.basename(os.path.dirname(here.path))
        if base.has(user, parent):
            os.rmdir(user, dir_fd=base.fd)


# ---- locks ------------------------------------------------------------------------------------


class NameLock:
    """The lock of a name, which this process holds until :meth:`release`."""

    def __init__(self, here: Directory, name: str, file: io.FileIO) -> None:
        self.name = name
        self._here = here
        self._file = file

    def __repr__(self) -> str:
        return f"<NameLock {self.name}>"

    def is_of(self, here: Directory, name: str) -> bool:
        return name == self.name and files.is_linked(self._file, here, name + LOCK)

    def release(self) -> None:
        """Remove the lock file and give the lock up. Idempotent; in a forked child it only closes.

        Removed first: later the file may be another owner's.
        """
        with locks.process_lock:
            if self in _held:
                with contextlib.suppress(OSError):
                    if files.is_linked(self._file, self._here, self.name + LOCK):
                        os.unlink(self.name + LOCK, dir_fd=self._here.fd)
                _held.discard(self)
            self._file.close()

    def forked(self) -> None:
        self._file.close()


_held: set[NameLock] = set()
"""The locks of this process. ``locks.process_lock`` guards it.

To open and close a lock file would drop the lock, so this is looked at first.
"""


@native.in_forked_child
def _after_fork_in_child() -> None:
    """Forget the locks, which are the parent's; closing a descriptor keeps them."""
    for each in _held:
        each.forked()
    _held.clear()


def lock(here: Directory, name: str, owner: str, tries: int = LOCK_TRIES) -> NameLock:
    """Take the lock of a name. ``owner`` says to people who has it. Raises Owned and OSError."""
    while True:
        with locks.process_lock:
            if any(each.is_of(here, name) for each in _held):
                raise Owned(f"this process ({os.getpid()})")
            taken = _try_lock(here, name, owner)
        if isinstance(taken, NameLock):
            return taken
        tries -= 1
        if not tries:
            raise Owned(taken or "another process")
        native.sleep(LOCK_PAUSE)


def _try_lock(here: Directory, name: str, owner: str) -> NameLock | str:
    """Take the lock; the caller knows that this process does not have it. Or return whose it is."""
    file = files.open_writable(here, name + LOCK, create=True)
    taken = None
    try:
        if not locks.try_exclusive(file):
            return os.pread(file.fileno(), LOCK_TEXT_BYTES, 0).decode(errors="replace")
        if not files.is_linked(file, here, name + LOCK):
            return ""
        taken = NameLock(here, name, file)
        _held.add(taken)
        text = f"process {os.getpid()}, {owner}" if owner else f"process {os.getpid()}"
        with contextlib.suppress(OSError):  # the file system is full
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), text.encode(errors="replace")[:LOCK_TEXT_BYTES], 0)
        return taken
    finally:
        if taken is None:
            file.close()


# ---- what owners leave ------------------------------------------------------------------------


def remove_files(here: Directory, name: str, listed: Iterable[str]) -> None:
    """Void and remove the page of a name and its owner's other files, of those that are listed.

    The caller holds the lock of the name. What cannot be removed stays.
    """
    for entry in listed:
        if entry == name + PAGE:
            # Readers that have it mapped must stop before a new owner says anything else.
            with contextlib.suppress(OSError):
                page.void_file(here, entry)
        if entry == name + PAGE or entry.startswith(f"{name}-"):
            # Not opened: this process may have a lock on the table, which would be dropped.
            with contextlib.suppress(OSError):
                os.unlink(entry, dir_fd=here.fd)


def listing(here: Directory) -> list[str]:
    with here.listed() as entries:
        return [entry.name for entry in entries]


def clean(here: Directory) -> None:
    """Remove what owners that have ended have left. Raises OSError."""
    entries = listing(here)
    names = {found[1] for entry in entries if (found := NAME.match(entry))}
    for name in names:
        with contextlib.suppress(Owned, OSError):
            taken = lock(here, name, "removing files", tries=1)
            try:
                remove_files(here, name, entries)
            finally:
                taken.release()


def clean_user(parent: Directory) -> None:
    """Do so in the user's folder, and remove the folder of host memberships if it is empty."""
    with contextlib.suppress(FileNotFoundError):
        here = parent.open_private(HOSTS)
        clean(here)
        with contextlib.suppress(OSError):
            os.rmdir(HOSTS, dir_fd=parent.fd)
