"""The folder of one epoch: how it comes into being, and how it goes away with its last user.

::

    <root>/dstore-<uid>/        mode 0700
        <epoch, 16 hex digits>/
            lock                every process that uses the epoch holds a shared lock on it
            global/             files that belong to Global, never evicted
            copies/             files that Nodes have fetched, evictable

Whoever wants to remove a folder takes its lock exclusively, without waiting, and so gets it only
if no process uses the folder. A joiner may have opened the lock file before that and get the lock
after it: so, with the lock, it makes sure that the file is still the one in the folder, and else
starts over.

The last one out removes the folder. It gives up its shared lock *before* it tries for the
exclusive one: of two that leave at the same time, each holding on to its share, both would find
the lock taken and both would leave the folder behind. What a killed process leaves behind goes
when the next one comes.

To remove gigabytes takes a while. So, with the lock, the folder only gets another name, which
nobody enters, and the janitor removes what is in it; if it does not come to an end, the next one
that cleans does.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import stat
from functools import partial
from typing import TYPE_CHECKING

from dstore import native
from dstore.background import janitor
from dstore.shm import locks
from dstore.shm.locks import held

if TYPE_CHECKING:
    from dstore.shm.parts import Part


LOCK, OWN, COPIES = "lock", "global", "copies"
EPOCH_NAME = re.compile("[0-9a-f]{16}")
GONE_NAME = re.compile("[0-9a-f]{16}[.][0-9a-f]{16}")
"""A folder that nobody uses any more: its epoch, and a random number."""
EPOCH_MAX = (1 << 64) - 1

ENTER_TRIES, ENTER_PAUSE = 1000, 0.005
"""How often, and at what distance in seconds, one tries to enter a folder that is being removed."""


class Unusable(Exception):
    """There is no shared memory to be had in this place. The message says why."""


class Folder:
    """The folder of an epoch that this process has entered; it holds the lock, shared.

    ``users`` counts the memories of this process that are open on it, ``parts`` are the
    unfinished files that this process writes, by path. ``held.lock`` guards them. ``alive`` ends
    when the process leaves, and in a forked child.
    """

    def __init__(self, path: str, lock_file: io.FileIO) -> None:
        self.path = path
        self.own = os.path.join(path, OWN)
        self.copies = os.path.join(path, COPIES)
        self.lock_file = lock_file
        self.key = locks.identity(os.fstat(lock_file.fileno()))
        self.users = 0
        self.parts: dict[str, Part] = {}
        self.alive = True

    def __repr__(self) -> str:
        state = "" if self.alive else " left"
        return f"<Folder {self.path} users={self.users} parts={len(self.parts)}{state}>"

    def forked(self) -> None:
        """In the child: this is the parent's, and stays as it is."""
        self.alive = False
        self.lock_file.close()
        for part in self.parts.values():
            part.forked()
        self.parts.clear()


def user_folder(root: str) -> str:
    """Where the folders of this user are."""
    return os.path.join(root, f"dstore-{os.geteuid()}")


def enter(root: str, epoch: int) -> Folder:
    """Join the users of an epoch on this host. Raises Unusable and OSError.

    Each call wants a :func:`leave`.
    """
    user = user_folder(root)
    path = os.path.join(user, f"{epoch:016x}")
    for _ in range(ENTER_TRIES):
        with held.lock:
            folder = _try_to_enter(user, path)
            if folder is not None:
                folder.users += 1
                return folder
        native.sleep(ENTER_PAUSE)
    raise Unusable(f"{path} is being removed by a process that does not finish")


def _try_to_enter(user: str, path: str) -> Folder | None:
    """None if somebody is removing the folder, or has removed it in between."""
    lock_path = os.path.join(path, LOCK)
    _make(user)  # where even this finds nothing, it is the root that is missing
    try:
        _check(user)
        _make(path)
        _check(path)
        known = held.find(lock_path)
        if known is not None:
            return known
        file = locks.open_file(lock_path, create=True)
    except FileNotFoundError:
        return None
    folder = None
    try:
        if locks.try_shared(file) and locks.is_linked(file, lock_path):
            folder = Folder(path, file)
            os.makedirs(folder.own, 0o700, exist_ok=True)
            os.makedirs(folder.copies, 0o700, exist_ok=True)
            held.folders[folder.key] = folder
    finally:
        if folder is None or folder.key not in held.folders:
            file.close()
    return folder


def _make(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)


def _check(path: str) -> None:
    """Raise Unusable unless this is a folder of our own.

    The root may be open to all, as /dev/shm is, and what is found there may be a trap.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise Unusable(f"{path} is not a folder")
    if status.st_uid != os.geteuid():
        raise Unusable(f"{path} belongs to user {status.st_uid}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise Unusable(f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o})")


def leave(folder: Folder) -> None:
    """Undo one :func:`enter`. The last one out of this host has the folder removed."""
    with held.lock:
        if not folder.alive:
            return
        folder.users -= 1
        if folder.users:
            return
        folder.alive = False
        held.folders.pop(folder.key, None)
        try:
            for part in list(folder.parts.values()):
                part.abandon()
            locks.release(folder.lock_file)
            _remove_if_unused(folder.path, folder.lock_file)
        finally:
            folder.lock_file.close()


def clean(root: str) -> None:
    """Have every folder of this user removed that no live process uses.

    Raises Unusable and OSError.
    """
    user = user_folder(root)
    try:
        _check(user)
        names = os.listdir(user)
    except FileNotFoundError:
        return
    for name in names:
        path = os.path.join(user, name)
        if GONE_NAME.fullmatch(name):
            janitor.do(partial(_remove, path))
        elif EPOCH_NAME.fullmatch(name):
            with held.lock, contextlib.suppress(OSError, Unusable):
                _clean(path)
    with contextlib.suppress(OSError):
        os.rmdir(user)


def _clean(path: str) -> None:
    _check(path)
    lock_path = os.path.join(path, LOCK)
    if held.find(lock_path) is not None:
        return  # opening and closing it here would drop our lock
    # One without a lock file is about to be used, or half removed: the lock decides that too.
    with locks.open_file(lock_path, create=True) as file:
        _remove_if_unused(path, file)


def _remove_if_unused(path: str, lock_file: io.FileIO) -> None:
    lock_path = os.path.join(path, LOCK)
    if not (locks.try_exclusive(lock_file) and locks.is_linked(lock_file, lock_path)):
        return
    gone = f"{path}.{os.urandom(8).hex()}"
    with contextlib.suppress(OSError):
        os.rename(path, gone)
        janitor.do(partial(_remove, gone))


def _remove(gone: str) -> None:
    """Others may be about it at the same time."""
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(gone))
