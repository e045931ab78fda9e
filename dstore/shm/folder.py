"""The folder of one epoch: how it is created, and how its last user removes it.

``files.py`` shows what is in it. A process that wants to remove a folder takes its lock
exclusively, without waiting, and so gets it only if no process uses the folder. A process that
enters may have opened the lock file before that and get the lock after it. So, with the lock, it
checks that the file is still the one in the folder, and starts over if not.

The last process that leaves removes the folder. It gives up its shared lock *before* it tries for
the exclusive one: of two that leave at the same time, each still holding its shared lock, both
would find the lock taken, and the folder would stay. What a killed process leaves behind is removed
when the next process comes.

A process that has entered holds the folder open and opens its files relative to it
(``directory.py``). If the folder is removed all the same, as a system does when a user logs out, a
process notices when it wants to write there, and enters a new folder of the same name.

To remove gigabytes takes a while. So, with the lock, the folder only gets another name, which no
process enters, and the janitor removes its contents. If the janitor does not finish, the next
process that cleans does.
"""

from __future__ import annotations

import contextlib
import io
import os
from functools import partial

from dstore.runtime import native
from dstore.runtime.background import janitor
from dstore.shm import directory, files, hosts, locks
from dstore.shm.directory import Directory, Unusable
from dstore.shm.files import COPIES, GLOBAL, LOCK
from dstore.shm.partial_files import PartialFiles

ENTER_TRIES = 1000
"""Tries to enter a folder that another process is removing."""
ENTER_PAUSE = 0.005
"""Seconds between two tries to enter a folder."""


class Folder:
    """The folder of an epoch that this process has entered; it holds the shared lock.

    ``directory`` is the folder and ``parent`` the folder of all epochs. ``users`` counts the
    memories of this process that are open on it. ``locks.process_lock`` guards all this. ``alive``
    becomes false when the process leaves, and in a forked child.
    """

    def __init__(self, parent: Directory, here: Directory, lock_file: io.FileIO) -> None:
        self.parent = parent
        self.directory = here
        self.path = here.path
        self.lock_file = lock_file
        self.users = 0
        self.partial_files = PartialFiles(here)
        self.alive = True

    def forked(self) -> None:
        """In a forked child: the folder is the parent's, and stays as it is."""
        self.alive = False
        self.lock_file.close()
        self.directory.close()
        self.parent.close()
        self.partial_files.forked()


entered: set[Folder] = set()
"""The folders that this process has entered. ``locks.process_lock`` guards it."""


def _entered(here: Directory) -> Folder | None:
    mine = (each for each in entered if files.is_linked(each.lock_file, here, LOCK))
    return next(mine, None)


@native.in_forked_child
def _after_fork_in_child() -> None:
    """Forget the folders: the locks are the parent's, and closing descriptors keeps them."""
    for folder in entered:
        folder.forked()
    entered.clear()


def enter(root: str, epoch: int, tries: int = ENTER_TRIES) -> Folder:
    """Join the users of an epoch on this host, until :func:`leave`. Raises Unusable and OSError.

    While another process removes the folder, it waits and tries again.
    """
    base = directory.walk(root)
    name = f"{epoch:016x}"
    while True:
        with locks.process_lock:
            folder = _try_to_enter(base, name)
            if folder is not None:
                folder.users += 1
                return folder
        tries -= 1
        if not tries:
            path = os.path.join(root, files.user_folder(), name)
            raise Unusable(f"{path} is being removed by a process that does not finish")
        native.sleep(ENTER_PAUSE)


def _try_to_enter(base: Directory, name: str) -> Folder | None:
    """Enter the folder. Returns None if another process is removing it or has removed it."""
    user = files.user_folder()
    base.make_folder(user)  # a FileNotFoundError here means that the root is missing
    folder = None
    try:
        parent = base.open_private(user)
        parent.make_folder(name)
        here = parent.open_private(name)
        folder = _entered(here) or _lock(parent, here)
        if folder is not None:
            for inner in (GLOBAL, COPIES):
                here.make_folder(inner)
                here.open_private(inner)
            entered.add(folder)
    except FileNotFoundError:
        return None
    finally:
        if folder is not None and folder not in entered:
            folder.lock_file.close()
    return folder


def _lock(parent: Directory, here: Directory) -> Folder | None:
    file = files.open_writable(here, LOCK, create=True)
    folder = None
    try:
        if locks.try_shared(file) and _is_current(parent, here, file):
            folder = Folder(parent, here, file)
            return folder
    finally:
        if folder is None:
            file.close()
    return None


def _is_current(parent: Directory, here: Directory, lock_file: io.FileIO) -> bool:
    """Return whether a process that enters by name would find this folder and this lock."""
    name = os.path.basename(here.path)
    return parent.has(name, here) and files.is_linked(lock_file, here, LOCK)


def leave(folder: Folder) -> None:
    """Undo one :func:`enter`. The last process of this host that leaves removes the folder."""
    with locks.process_lock:
        if not folder.alive:
            return
        folder.users -= 1
        if folder.users:
            return
        folder.alive = False
        entered.discard(folder)
        try:
            folder.partial_files.abandon_all()
            locks.release(folder.lock_file)
            _remove_if_unused(folder.parent, folder.directory, folder.lock_file)
        finally:
            folder.lock_file.close()


def clean(root: str) -> None:
    """Remove every folder of this user that no live process uses. Raises Unusable and OSError.

    So it does with what ended owners of host memberships have left.
    """
    base = directory.walk(root)
    user = files.user_folder()
    try:
        parent = base.open_private(user)
    except FileNotFoundError:
        return
    with parent.listed() as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if files.REMOVED_NAME.fullmatch(name):
            janitor.do(partial(_remove, parent, name))
        elif files.EPOCH_NAME.fullmatch(name):
            with locks.process_lock, contextlib.suppress(OSError, Unusable):
                _clean(parent, name)
    hosts.clean_user(parent)
    with contextlib.suppress(OSError):
        os.rmdir(user, dir_fd=base.fd)


def _clean(parent: Directory, name: str) -> None:
    here = parent.open_private(name)
    if _entered(here) is not None:
        return  # to open and close the lock file here would drop our lock
    # A folder without a lock file is about to be used, or half removed: the lock decides which.
    with files.open_writable(here, LOCK, create=True) as file:
        _remove_if_unused(parent, here, file)


def _remove_if_unused(parent: Directory, here: Directory, lock_file: io.FileIO) -> None:
    if not (locks.try_exclusive(lock_file) and _is_current(parent, here, lock_file)):
        return
    name = os.path.basename(here.path)
    removed = f"{name}.{os.urandom(8).hex()}"
    with contextlib.suppress(OSError):
        os.rename(name, removed, src_dir_fd=parent.fd, dst_dir_fd=parent.fd)
        janitor.do(partial(_remove, parent, removed))


def _remove(parent: Directory, removed: str) -> None:
    """Remove a renamed folder, and the user's folder if that was the last."""
    parent.remove_tree(removed)
    with contextlib.suppress(OSError):
        base, name = parent.open_folder(".."), os.path.basename(parent.path)
        if base.has(name, parent):
            os.rmdir(name, dir_fd=base.fd)
