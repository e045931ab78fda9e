"""The header of a page: what it says about its session, and for whom its words mean the same.

::

    word 0            LAYOUT: what is at which place; another byte order shows as another number
    word 1            how many bytes the packed header has
    byte 64           the lease word
    byte 128          the packed header: a Header, then an Identity
    byte 4096         the invalidation words, one for each bucket
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from dstore.core.local.key_hash import KeyHash
from dstore.protocol import keys
from dstore.protocol.unpacking import packed, unpacked
from dstore.protocol.wire import VERSION
from dstore.shm.directory import Unusable
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
BUCKETS_MAX = 1 << 24

TEST_KEYS = ("dstore", "ключ/🔑", keys.from_bytes(b"\x80 is not UTF-8"), "k" * 200)
"""Owner and reader must agree on the hash of these, and so of all keys."""


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
    keyed: bool  # whether its Global asks for keys
    cluster: bytes  # of which its Global is a member; b"" if it is none


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
_IDENTITY_KINDS = [int, int, float, int, int, str, str, str, str, bytes, int, bool, bytes]
_KINDS = [*_HEADER_KINDS, *_IDENTITY_KINDS]


def size_of(buckets: int) -> int:
    """Bytes of a page. Raises ValueError if this is no number of buckets."""
    if not 0 < buckets <= BUCKETS_MAX or buckets & (buckets - 1):
        raise ValueError(f"buckets are a power of two up to {BUCKETS_MAX:,}, not {buckets:,}")
    return WORDS_AT + buckets * WORD_BYTES


def header_for(identity: Identity, status: os.stat_result) -> Header:
    """Return the header of a page of this process, in the file with this status. Raises Unusable.

    Raises ValueError if the hash key has another length.
    """
    around = surroundings()
    hashes = _hashes(identity)
    return Header(VERSION, os.geteuid(), status.st_dev, status.st_ino, *around, hashes)


def _hashes(identity: Identity) -> list[int]:
    return list(map(KeyHash(identity.hash_key), TEST_KEYS))


def pack(header: Header, identity: Identity) -> bytes:
    """Return the packed header. Raises Unusable if it is too long."""
    body = packed([*header, *identity._replace(lease=float(identity.lease))])
    if HEADER_AT + len(body) > WORDS_AT:
        raise Unusable(f"its header has {len(body):,} bytes, which is too much; shorten the label")
    return body


def read(raw: bytes) -> tuple[Header, Identity]:
    """Return the header that the first bytes of a page have. Raises Unusable."""
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


def check(header: Header, identity: Identity, status: os.stat_result, address: str | None) -> None:
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
        agreed = header.hashes == _hashes(identity)
    except ValueError:  # the key has another length
        agreed = False
    if not agreed:
        raise Unusable("its owner hashes keys in another way")
