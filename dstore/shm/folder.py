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

A process that has entered holds the folder open and opens its files relative to it (``place.py``).
If somebody removes the folder all the same, as a system does when a user logs out, a process
notices when it wants to write there, and enters again, into a folder of the same name.

To remove gigabytes takes a while. So, with the lock, the folder only gets another name, which
nobody enters, and the janitor removes what is in it; if it does not come to an end, the next one
that cleans does.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from dstore.runtime import native
from dstore.runtime.background import janitor
from dstore.shm import locks, place
from dstore.shm.locks import held
from dstore.shm.place import Directory, Unusable

if TYPE_CHECKING:
    from dstore.shm.parts import Part


LOCK, OWN, COPIES = "lock", "global", "copies"
EPOCH_NAME = re.compile("[0-9a-f]{16}")
GONE_NAME = re.compile("[0-9a-f]{16}[.][0-9a-f]{16}")
"""A folder that nobody uses any more: its epoch, and a random number."""
EPOCH_MAX = (1 << 64) - 1

ENTER_TRIES, ENTER_PAUSE = 1000, 0.005
"""How often, and at what distance in seconds, one tries to enter a folder that is being removed."""


class Folder:
    """The folder of an epoch that this process has entered; it holds the lock, shared.

    ``here`` is the folder, ``above`` the one of all epochs. ``users`` counts the memories of this
    process that are open on it, ``parts`` are the unfinished files that this process writes, by
    name. ``held.lock`` guards them. ``alive`` ends when the process leaves, and in a forked child.
    """

    def __init__(self, above: Directory, here: Directory, lock_file: io.FileIO) -> None:
        self.above = above
        self.here = here
        self.path = here.path
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
        self.here.close()
        self.above.close()
        for part in self.parts.values():
            part.forked()
        self.parts.clear()


def enter(root: str, epoch: int, tries: int | None = None) -> Folder:
    """Join the users of an epoch on this host. Raises Unusable and OSError.

    Each call wants a :func:`leave`. It waits for one who is removing the folder, unless there is
    but one try.
    """
    base = place.walk(root)
    left = ENTER_TRIES if tries is None else tries
    while True:
        with held.lock:
            folder = _try_to_enter(base, _name(epoch))
            if folder is not None:
                folder.users += 1
                return folder
        left -= 1
        if not left:
            path = os.path.join(root, _user_name(), _name(epoch))
            raise Unusable(f"{path} is being removed by a process that does not finish")
        native.sleep(ENTER_PAUSE)


def _name(epoch: int) -> str:
    return f"{epoch:016x}"


def _user_name() -> str:
    """Where the folders of this user are."""
    return f"dstore-{os.geteuid()}"


def _try_to_enter(base: Directory, name: str) -> Folder | None:
    """None if somebody is removing the folder, or has removed it in between."""
    base.make(_user_name())  # where even this finds nothing, it is the root that is missing
    folder = None
    try:
        above = base.own(_user_name())
        above.make(name)
        here = above.own(name)
        folder = held.find(here, LOCK) or _locked(above, here, name)
        if folder is not None:
            for inner in (OWN, COPIES):
                here.make(inner)
                here.own(inner)
            held.folders[folder.key] = folder
    except FileNotFoundError:
        return None
    finally:
        if folder is not None and folder.key not in held.folders:
            folder.lock_file.close()
    return folder


def _locked(above: Directory, here: Directory, name: str) -> Folder | None:
    file = locks.open_file(here, LOCK, create=True)
    folder = None
    try:
        if locks.try_shared(file) and _is_current(above, here, name, file):
            folder = Folder(above, here, file)
            return folder
    finally:
        if folder is None:
            file.close()
    return None


def _is_current(above: Directory, here: Directory, name: str, lock_file: io.FileIO) -> bool:
    """Whether who enters by name would find this folder and this lock."""
    return above.has(name, here) and locks.is_linked(lock_file, here, LOCK)


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
            _remove_if_unused(folder.above, folder.here, folder.lock_file)
        finally:
            folder.lock_file.close()


def clean(root: str) -> None:
    """Have every folder of this user removed that no live process uses.

    Raises Unusable and OSError.
    """
    base = place.walk(root)
    try:
        above = base.own(_user_name())
    except FileNotFoundError:
        return
    with above.listed() as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if GONE_NAME.fullmatch(name):
            janitor.do(partial(_remove, above, name))
        elif EPOCH_NAME.fullmatch(name):
            with held.lock, contextlib.suppress(OSError, Unusable):
                _clean(above, name)
    with contextlib.suppress(OSError):
        os.rmdir(_user_name(), dir_fd=base.fd)


def _clean(above: Directory, name: str) -> None:
    here = above.own(name)
    if held.find(here, LOCK) is not None:
        return  # opening and closing it here would drop our lock
    # One without a lock file is about to be used, or half removed: the lock decides that too.
    with locks.open_file(here, LOCK, create=True) as file:
        _remove_if_unused(above, here, file)


def _remove_if_unused(above: Directory, here: Directory, lock_file: io.FileIO) -> None:
    name = os.path.basename(here.path)
    if not (locks.try_exclusive(lock_file) and _is_current(above, here, name, lock_file)):
        return
    gone = f"{name}.{os.urandom(8).hex()}"
    with contextlib.suppress(OSError):
        os.rename(name, gone, src_dir_fd=above.fd, dst_dir_fd=above.fd)
        janitor.do(partial(_remove, above, gone))


def _remove(above: Directory, gone: str) -> None:
    """Others may be about it at the same time."""
    above.remove(gone)
    with contextlib.suppress(OSError):
        base, name = above.enter(".."), os.path.basename(above.path)
        if base.has(name, above):
            os.rmdir(name, dir_fd=base.fd)
