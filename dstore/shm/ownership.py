"""Owning a host membership: the names of one Global on this host, and the page of each session."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable

from dstore.runtime import native
from dstore.runtime.logs import WARNING
from dstore.shm import files, hosts, locks, page, writable
from dstore.shm import root as roots
from dstore.shm.directory import Directory, Unusable
from dstore.shm.hosts import NEW, PAGE, TABLE, NameLock, Owned
from dstore.shm.page import Identity, OwnedPage

EPOCH_TRIES = 5
"""Tries to lock the name by epoch; without it there is a page all the same."""

MakeTable = Callable[[Directory, str], object]
"""Creates the host cache: a file with this name in this folder."""


class Ownership:
    """Holds the names of one Global on this host, until :meth:`close`. Safe from any thread.

    It has at most one page at a time. In a forked child it and its page do nothing.
    """

    def __init__(self, here: Directory, taken: list[NameLock]) -> None:
        self._here = here
        self._locks = taken
        self._epoch_lock: NameLock | None = None
        self._page: OwnedPage | None = None
        self._alive = True
        with locks.process_lock:
            _owners.add(self)

    def __repr__(self) -> str:
        return f"<Ownership {'open' if self._alive else 'closed'} {self._locks} {self._page}>"

    @classmethod
    def take(
        cls,
        root: str | None,
        addresses: Iterable[str],
        owner: str = "",
        tries: int = hosts.LOCK_TRIES,
    ) -> Ownership:
        """Take the names of these canonical addresses, of which there is at least one.

        Pages that a former owner has left are voided and removed, with its other files. ``owner``
        says to people who this is; with one of the ``tries`` it does not wait. Raises Owned, which
        says which process has one of the names, Unusable and OSError.
        """
        path = roots.chosen(root)
        if path is None:
            raise Unusable("shared memory is switched off or not available")
        page.check_machine()
        if not writable.AVAILABLE:
            raise Unusable("this Python has no module ctypes, which an owner of a page needs")
        names = {hosts.name_of(each): each for each in addresses}
        return cls(*_take(path, names, owner, tries))

    def publish(self, identity: Identity, make_table: MakeTable | None = None) -> OwnedPage:
        """Create the page of a session and let readers find it. The former page must be closed.

        ``make_table`` creates the host cache; if it raises Unusable or OSError there is none, and
        that is logged. The field ``table`` of the page's identity has its name. Raises Unusable,
        as when there is no memory, and then there is no page.
        """
        with locks.process_lock:
            if self._page is not None and not self._page.closed:
                raise RuntimeError("close the page of the former session first")
            if not self._alive:
                raise Unusable("this ownership is closed")
            stem = f"{self._locks[0].name}-{os.urandom(8).hex()}"
            self._page = None
            try:
                table = _table(self._here, stem + TABLE, make_table)
                made = page.create(self._here, stem + NEW, identity._replace(table=table))
                try:
                    self._epoch_lock = self._lock_epoch(identity.epoch)
                    made.on_close(self._withdraw)
                    self._link(stem + NEW)
                    self._page = made
                finally:
                    if self._page is None:
                        made.close()
            except OSError as error:
                raise Unusable(f"no page can be made in {self._here.path}: {error}") from None
            finally:
                if self._page is None:
                    _remove_files(self._here, self._locks)
            return made

    def _lock_epoch(self, epoch: int) -> NameLock | None:
        """Lock the name by epoch, and remove what is there. None if another owner has it.

        As when two addresses lead to one Global, and each has an owner.
        """
        try:
            taken = hosts.lock(self._here, hosts.name_of_epoch(epoch), "", EPOCH_TRIES)
        except Owned:
            return None
        _remove_files(self._here, [taken])
        return taken

    def _names(self) -> list[str]:
        own = [*self._locks, *([self._epoch_lock] if self._epoch_lock else [])]
        return [each.name + PAGE for each in own]

    def _link(self, new: str) -> None:
        fd = self._here.fd
        for name in self._names():
            os.link(new, name, src_dir_fd=fd, dst_dir_fd=fd)
        os.unlink(new, dir_fd=fd)

    def _withdraw(self) -> None:
        """Remove the names of the page and its table."""
        _remove_files(self._here, [*self._locks, *filter(None, [self._epoch_lock])])
        if self._epoch_lock is not None:
            self._epoch_lock.release()
            self._epoch_lock = None

    def findable(self) -> bool:
        """Whether readers find the page: another program may have removed or replaced its files.

        Then close this ownership and take the names again.
        """
        own = self._page
        if own is None or own.closed or not self._alive:
            return False
        found = [files.status(self._here, name) for name in self._names()]
        here = all(each and os.path.samestat(each, own.status) for each in found)
        return here and self._here_is_current()

    def _here_is_current(self) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(self._here.path), os.fstat(self._here.fd))
        return False

    def close(self) -> None:
        """Close the page, remove all files and give the names up. Idempotent."""
        with locks.process_lock:
            if not self._alive or self not in _owners:
                return
            self._alive = False
            try:
                if self._page is not None:
                    self._page.close()
            finally:
                _owners.discard(self)
                for each in self._locks:
                    each.release()
        hosts.remove_if_empty(self._here)
        self._here.close()

    def forked(self) -> None:
        """In a forked child: forget everything, which is the parent's."""
        self._alive = False
        if self._page is not None:
            self._page.forked()
        self._here.close()


_owners: set[Ownership] = set()
"""The open ownerships of this process. ``locks.process_lock`` guards it."""


@native.in_forked_child
def _after_fork_in_child() -> None:
    for each in _owners:
        each.forked()
    _owners.clear()


def _take(
    path: str, names: dict[str, str], owner: str, tries: int
) -> tuple[Directory, list[NameLock]]:
    """Take the locks of the names, and remove what is there. Returns the folder and the locks."""
    for tries_left in reversed(range(hosts.ENTER_TRIES)):
        here = hosts.enter(path)
        try:
            page.check_file_system(here, os.fstat(here.fd))
            return here, _lock_all(here, names, owner, tries)
        except FileNotFoundError:  # another process has removed the empty folder just now
            if not tries_left:
                raise
        except BaseException:
            hosts.remove_if_empty(here)
            raise
    raise AssertionError


def _lock_all(here: Directory, names: dict[str, str], owner: str, tries: int) -> list[NameLock]:
    taken: list[NameLock] = []
    whole = False
    try:
        for name in sorted(names):  # of two owners with names in common one gets the first of these
            one = _lock(here, name, names[name], owner, tries)
            taken.append(one)  # if the next is refused, this is released
        hosts.clean(here)
        _remove_files(here, taken)
        whole = True
    finally:
        if not whole:
            for each in taken:
                each.release()
    return taken


def _lock(here: Directory, name: str, address: str, owner: str, tries: int) -> NameLock:
    try:
        return hosts.lock(here, name, owner, tries)
    except Owned as error:
        raise Owned(f"{error} has the shared cache of {address}; stop it first") from None


def _remove_files(here: Directory, own: list[NameLock]) -> None:
    with contextlib.suppress(OSError):
        entries = hosts.listing(here)
        for each in own:
            hosts.remove_files(here, each.name, entries)


def _table(here: Directory, name: str, make_table: MakeTable | None) -> str:
    if make_table is None:
        return ""
    try:
        make_table(here, name)
    except (OSError, Unusable) as error:
        roots.log_once(WARNING, f"the processes of this host share no small values: {error}")
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=here.fd)
        return ""
    return name
