"""The page of a host membership: its layout, the owner's side and the readers' side.

::

    word 0            LAYOUT: what is at which place; another byte order shows as another number
    word 1            how many bytes the packed header has
    byte 64           the lease word
    byte 128          the packed header: a Header, then an Identity
    byte 4096         the invalidation words, one for each bucket

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
from hashlib import blake2b
from typing import Any, NamedTuple

from dstore import compiled
from dstore.protocol import keys
from dstore.protocol.unpacking import packed, unpacked
from dstore.protocol.wire import VERSION
from dstore.runtime import clock, native
from dstore.shm import files, mapping, namespaces, writable
from dstore.shm.directory import Directory, Unusable
from dstore.shm.namespaces import Surroundings, surroundings

LAYOUT = int.from_bytes(b"dSpage\0\1", "big")
LENGTH_AT = 8
LEASE_AT = 64
"""The place of the lease word. It is the same in every layout, so that a new owner can void the
page of an older version.
"""
HEADER_AT = 128
WORDS_AT = 4096
WORD_BYTES = 8
HASH_BYTES = 8
BUCKETS_MAX = 1 << 24

VOID, LAPSED = 0, 1
NANOSECONDS = 1_000_000_000
TEST_KEYS = ("dstore", "ключ/🔑", keys.from_bytes(b"\x80 is not UTF-8"), "k" * 200)
"""Owner and reader must agree on the hash of these, and so of all keys."""
STRONG_ORDER = ("x86_64", "AMD64")
"""Processors on which plain loads and stores of words are enough."""


class Identity(NamedTuple):
    """What a page says about its session, fixed from its creation."""

    epoch: int
    session: int  # the public session id; the secret is never in the page
    lease: float  # seconds
    value_limit: int
    large_from: int
    publisher: str  # where Global publishes, for observers
    endpoint: str  # "", or an ipc address at which Global takes requests of this host
    owner: str  # for people: "global" or "host", the process id, a label
    table: str  # the file name of the host cache; "" if there is none
    hash_key: bytes
    buckets: int


class Header(NamedTuple):
    """What must be as a reader finds it, so that it may use the page."""

    protocol: int
    user: int
    device: int  # with the inode: this file is no copy
    inode: int
    boot: str
    time: str
    network: str
    mount: str
    hashes: list[int]


_HEADER_KINDS = [int, int, int, int, str, str, str, str, list]
_IDENTITY_KINDS = [int, int, float, int, int, str, str, str, str, bytes, int]
_KINDS = [*_HEADER_KINDS, *_IDENTITY_KINDS]


def hash64(hash_key: bytes, key: str) -> int:
    """Return the keyed hash of a key by which its bucket is found."""
    made = blake2b(keys.to_bytes(key), digest_size=HASH_BYTES, key=hash_key)
    return int.from_bytes(made.digest(), "little")


def size_of(buckets: int) -> int:
    """Bytes of a page. Raises ValueError if this is no number of buckets."""
    if not 0 < buckets <= BUCKETS_MAX or buckets & (buckets - 1):
        raise ValueError(f"buckets are a power of two up to {BUCKETS_MAX:,}, not {buckets:,}")
    return WORDS_AT + buckets * WORD_BYTES


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
    if not 0 < len(identity.hash_key) <= blake2b.MAX_KEY_SIZE:
        raise ValueError(f"a hash key has 1 to {blake2b.MAX_KEY_SIZE} bytes")
    file = files.open_writable(here, name, create=True)
    try:
        with file:
            status = os.fstat(file.fileno())
            check_file_system(here, status)
            _reserve(file.fileno(), size)
            pages = writable.map_writable(file.fileno(), size)
            _write_header(pages, _header(identity, status, surroundings()), identity)
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


def _header(identity: Identity, status: os.stat_result, around: Surroundings) -> Header:
    hashes = [hash64(identity.hash_key, key) for key in TEST_KEYS]
    return Header(VERSION, os.geteuid(), status.st_dev, status.st_ino, *around, hashes)


def _write_header(pages: memoryview, header: Header, identity: Identity) -> None:
    body = packed([*header, *identity._replace(lease=float(identity.lease))])
    if HEADER_AT + len(body) > WORDS_AT:
        raise Unusable(f"its header has {len(body):,} bytes, which is too much; shorten the label")
    pages[HEADER_AT : HEADER_AT + len(body)] = body
    pages[LEASE_AT : LEASE_AT + WORD_BYTES].cast("Q")[0] = LAPSED
    first = pages[: LENGTH_AT + WORD_BYTES].cast("Q")
    first[0], first[1] = LAYOUT, len(body)


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
    """

    def __init__(self, identity: Identity, header: Header, pages: memoryview) -> None:
        self.identity = identity
        self.words = pages[WORDS_AT:].cast("Q")
        self.lease = pages[LEASE_AT : LEASE_AT + WORD_BYTES].cast("Q")
        self._header = header
        self._forks = _forks
        self._over = False

    def __repr__(self) -> str:
        state = "over" if self._over else "open"
        return f"<SharedPage {state} epoch={self.identity.epoch:x} {self.identity.owner}>"

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
        header, identity = _read_header(os.pread(file.fileno(), WORDS_AT, 0))
        _check(header, identity, status, address)
        pages = mapping.read_only(file.fileno(), size_of(identity.buckets))
    found = SharedPage(identity, header, pages)
    problem = lease_problem(found.lease[0], identity)
    if problem is not None:
        raise Unusable(problem)
    return found


def _read_header(raw: bytes) -> tuple[Header, Identity]:
    if len(raw) < WORDS_AT:
        raise Unusable("the file is cut short")
    first = memoryview(raw)[: LENGTH_AT + WORD_BYTES].cast("Q")
    layout, length = first
    if layout != LAYOUT or length > WORDS_AT - HEADER_AT:
        raise Unusable("it is of another version of dstore; let all processes use the same one")
    try:
        fields = unpacked(raw[HEADER_AT : HEADER_AT + length])
    except Exception as error:  # msgpack raises exceptions of several kinds
        raise Unusable(f"its header is damaged: {error}") from None
    return _fields(fields)


def _fields(fields: Any) -> tuple[Header, Identity]:
    if type(fields) is list and fields and fields[0] != VERSION:
        raise Unusable(
            f"its owner speaks version {fields[0]} of the protocol, and this process {VERSION}; "
            "let all processes use the same version of dstore"
        )
    if type(fields) is not list or [type(each) for each in fields] != _KINDS:
        raise Unusable("its header is damaged")
    count = len(Header._fields)
    return Header._make(fields[:count]), Identity._make(fields[count:])


def _check(header: Header, identity: Identity, status: os.stat_result, address: str | None) -> None:
    """Raise Unusable unless this process may use a page with this header."""
    try:
        size = size_of(identity.buckets)
    except ValueError as error:
        raise Unusable(str(error)) from None
    if (header.device, header.inode) != (status.st_dev, status.st_ino):
        raise Unusable("the file is a copy of another one")
    if status.st_size != size or status.st_blocks * 512 < size:
        raise Unusable("the file is cut short or has holes")
    if header.user != os.geteuid():
        raise Unusable(f"it belongs to user {header.user}")
    own = surroundings()
    if header.boot != own.boot:
        raise Unusable("it is from before this machine was started")
    if header.time != own.time:
        raise Unusable("its owner is in another time namespace, where the clock differs")
    if address is not None:
        _check_place(header, own, address)
    _check_hashes(header, identity)


def _check_place(header: Header, own: Surroundings, address: str) -> None:
    """Raise Unusable unless the address is the same peer for the owner and for this process."""
    if address.startswith("ipc://") and not address.startswith("ipc://@"):
        if header.mount != own.mount:
            raise Unusable("its owner is in another mount namespace, where the path is another")
    elif header.network != own.network:
        raise Unusable("its owner is in another network namespace, where the address is another")


def _check_hashes(header: Header, identity: Identity) -> None:
    try:
        agreed = header.hashes == [hash64(identity.hash_key, key) for key in TEST_KEYS]
    except ValueError:  # the key is too long
        agreed = False
    if not agreed:
        raise Unusable("its owner hashes keys in another way")
