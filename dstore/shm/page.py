"""The page of a host membership: the owner's side and the readers' side.

A page is of one session and is never rewritten for another. It is created whole, with all of its
memory reserved: to read a missing part of it would allocate memory, and on a full file system end
the reader. It gets its names last, so that a process which finds it finds all of it.

Lease and words change while others read them. They are aligned 64-bit words and are read and
written as such, through ``memoryview.cast("Q")`` or native code. (The module ``struct`` writes a
zero first, and a reader that sees it takes a deleted value for a valid one.)

The lease word begins with ``LAPSED``. It ends with ``VOID``, which says that the session is over
and that there will be no lease any more.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from dstore import compiled
from dstore.runtime import clock, native
from dstore.shm import files, header, mapping, namespaces, writable
from dstore.shm.directory import Directory, Unusable
from dstore.shm.header import (
    HEADER_AT,
    LEASE_AT,
    LENGTH_AT,
    WORD_BYTES,
    WORDS_AT,
    Header,
    Identity,
    size_of,
)

__all__ = ["LAPSED", "VOID", "Identity", "OwnedPage", "SharedPage", "open_shared", "size_of"]

VOID, LAPSED = 0, 1
NANOSECONDS = 1_000_000_000
STRONG_ORDER = ("x86_64", "AMD64")
"""Processors on which plain loads and stores of words are enough."""


def check_machine() -> None:
    """Raise Unusable if words cannot be shared on this machine."""
    if sys.maxsize < 1 << 32:
        raise Unusable("a 32-bit Python writes a 64-bit word in two steps; use a 64-bit one")
    machine = os.uname().machine
    if machine not in STRONG_ORDER and compiled.native is None:
        raise Unusable(
            f"on {machine} a shared cache takes the compiled part, and {compiled.missing}"
        )


def now_ns() -> int:
    """The clock of the lease word."""
    return int(clock.now() * NANOSECONDS)


def no_words() -> memoryview:
    return memoryview(b"").cast("Q")


# ---- the owner's side -------------------------------------------------------------------------


class OwnedPage:
    """A page as its owner writes it; made by :meth:`dstore.shm.ownership.Ownership.publish`.

    ``words`` and ``lease`` are writable views of 64-bit words; when the page is closed they are
    empty. Code that keeps them writes to memory that no new reader finds. In a forked child they
    must not be touched, and the page does nothing.
    """

    def __init__(self, identity: Identity, status: os.stat_result, pages: memoryview) -> None:
        self.identity = identity
        self.status = status
        self.words = pages[WORDS_AT:].cast("Q")
        self.lease = pages[LEASE_AT : LEASE_AT + WORD_BYTES].cast("Q")
        self._pid = os.getpid()
        self._closed = False
        self._withdraw: Callable[[], object] = int

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<OwnedPage {state} epoch={self.identity.epoch:x} {self.identity.owner}>"

    @property
    def closed(self) -> bool:
        """Whether it was closed, or is the parent's."""
        return self._closed or self._pid != os.getpid()

    def on_close(self, withdraw: Callable[[], object]) -> None:
        """Have ``withdraw`` called after the page is void; it removes the names."""
        self._withdraw = withdraw

    def void(self) -> None:
        """End the lease for good. Does nothing when the page is closed, and in a forked child."""
        lease = self.lease
        if not self.closed and len(lease):
            lease[0] = VOID

    def close(self) -> None:
        """Void the page, remove its names and unmap it. Idempotent."""
        if self.closed:
            self.forked()
            return
        self.void()
        self._closed = True
        try:
            self._withdraw()
        finally:
            self.forked()

    def forked(self) -> None:
        """Forget the page without touching it, as in a forked child."""
        self._closed = True
        self._withdraw = int
        self.words = self.lease = no_words()


def create(here: Directory, name: str, identity: Identity) -> OwnedPage:
    """Create the file of a page, for a name that no process looks for. Raises Unusable, OSError."""
    size = size_of(identity.buckets)
    file = files.open_writable(here, name, create=True)
    try:
        with file:
            status = os.fstat(file.fileno())
            check_file_system(here, status)
            _reserve(file.fileno(), size)
            pages = writable.map_writable(file.fileno(), size)
            _write_header(pages, header.header_for(identity, status), identity)
            return OwnedPage(identity, status, pages)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=here.fd)
        raise


def check_file_system(here: Directory, status: os.stat_result) -> None:
    """Raise Unusable unless the file is on a tmpfs."""
    kind = namespaces.file_system(status.st_dev)
    if kind != namespaces.TMPFS:
        raise Unusable(
            f"{here.path} is on a file system of the kind {kind or 'unknown'}; a shared cache "
            "takes a tmpfs, as /dev/shm is"
        )


def _reserve(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise Unusable(f"{size:,} bytes of shared memory are not to be had: {error}") from None


def _write_header(pages: memoryview, written: Header, identity: Identity) -> None:
    body = header.pack(written, identity)
    pages[HEADER_AT : HEADER_AT + len(body)] = body
    pages[LEASE_AT : LEASE_AT + WORD_BYTES].cast("Q")[0] = LAPSED
    first = pages[: LENGTH_AT + WORD_BYTES].cast("Q")
    first[0], first[1] = header.LAYOUT, len(body)


def void_file(here: Directory, name: str) -> None:
    """Void the page of an owner that has ended. Raises OSError.

    It may have been cut short or be of another version. So nothing of it is mapped. The system may
    write the zeros byte by byte: what a reader may see in between is an earlier end of the lease.
    """
    with files.open_writable(here, name, create=False) as file:
        os.pwrite(file.fileno(), bytes(WORD_BYTES), LEASE_AT)


# ---- the readers' side ------------------------------------------------------------------------


_forks = 0
"""Counts the forks between the first process and this one."""


@native.in_forked_child
def _after_fork_in_child() -> None:
    global _forks
    _forks += 1


class SharedPage:
    """A page as its readers see it: mapped read-only, and inherited by forked children.

    ``words`` and ``lease`` are views of 64-bit words; when the page is closed they are empty.
    ``directory`` is the folder of the page and its table.
    """

    def __init__(
        self, identity: Identity, header: Header, pages: memoryview, here: Directory
    ) -> None:
        self.directory = here
        self.identity = identity
        self.words = pages[WORDS_AT:].cast("Q")
        self.lease = pages[LEASE_AT : LEASE_AT + WORD_BYTES].cast("Q")
        self._header = header
        self._forks = _forks
        self._over = False

    def __repr__(self) -> str:
        state = "over" if self._over else "open"
        return f"<SharedPage {state} epoch={self.identity.epoch:x} {self.identity.owner}>"

    def users(self) -> int:
        """Return how many processes of this user have it mapped, its owner included."""
        return namespaces.users_of(self._header.device, self._header.inode)

    def usable(self) -> bool:
        """Whether this process may use the page. Once it is False it stays so.

        That is so when the page is void or closed, and after a fork or a change of the user if this
        process does not have the clock or the user of the page any more. Takes a microsecond.
        """
        if not self._over and self._unfit():
            self._over = True
        return not self._over

    def _unfit(self) -> bool:
        if len(self.lease) == 0 or os.geteuid() != self._header.user:
            return True
        if self._forks != _forks:
            try:
                if namespaces.time_namespace() != self._header.time:
                    return True
            except OSError:
                return True
            self._forks = _forks
        return lease_problem(self.lease[0], self.identity) is not None

    def close(self) -> None:
        """Give the page up. Its memory is unmapped with the last view. Idempotent."""
        self._over = True
        self.words = self.lease = no_words()


def lease_problem(end: int, identity: Identity) -> str | None:
    """What a lease word says against the use of its page; None if nothing does."""
    if end == VOID:
        return "its owner has ended its session"
    if end > now_ns() + int(identity.lease * NANOSECONDS):
        return "its lease ends later than a lease can, so the clocks differ"
    return None


def open_shared(here: Directory, name: str, address: str | None) -> SharedPage:
    """Open a page of another process. Raises Unusable, which says why not, and OSError.

    ``address`` is the canonical address by which it is looked for. Without one, the caller has
    asked Global for its epoch, and may be in another network or file tree than the owner.
    """
    check_machine()
    with files.open_sealed(here, name) as file:
        status = os.fstat(file.fileno())
        said, identity = header.read(os.pread(file.fileno(), WORDS_AT, 0))
        header.check(said, identity, status, address)
        pages = mapping.read_only(file.fileno(), size_of(identity.buckets))
    found = SharedPage(identity, said, pages, here)
    problem = lease_problem(found.lease[0], identity)
    if problem is not None:
        raise Unusable(problem)
    return found
