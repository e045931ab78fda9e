"""Limits and defaults that a user can see. Times are in seconds, sizes in bytes.

``docs/limits.md`` lists them together with limits that belong to one module and stand there;
``tests/unit/test_limits_documented.py`` compares the list with the code.
"""

from __future__ import annotations

import math
import os

ADDRESS_DEFAULT = "tcp://127.0.0.1:50051"
ADDRESS_VARIABLE = "DSTORE_GLOBAL"
CONNECT_VARIABLE = "DSTORE_CONNECT"

# Global
LEASE_DEFAULT = 2.0
LEASE_MIN, LEASE_MAX = 0.05, 3600.0
LOG_LENGTH_DEFAULT = 16_384
LOG_LENGTH_MAX = 1 << 18
"""Invalidations that the log keeps. One answer to a SYNC can bring a Local as many."""
MEMORY_LIMIT_DEFAULT = 4 << 30
SIZE_MAX = (1 << 62) - 1
"""The largest value of a limit in bytes: the largest size on the wire."""

OWNERSHIP_LEASE_DEFAULT = 4.0
OWNERSHIP_LEASE_MIN, OWNERSHIP_LEASE_MAX = 0.2, 3600.0
"""Seconds for which a member of a cluster may answer after a beat. The default is below that of a
Node's timeout, so that a call which finds a member dead can wait until others have taken over."""

CLIENTS_MAX_DEFAULT = 10_000
CLIENTS_MAX = 100_000
"""Locals that may be joined at one time: the default, and the most that can be set."""

# Memory that Locals can make Global take beside values. Each session has a share of it; the first
# few bytes of each share are assured, however much other sessions have taken.
PEER_SHARE = 3 / 4
"""The part of all Locals, and of all connections, that one address may have; and the part of all
Locals, of all uploads, and of each of the budgets below that one identity may have."""
SESSION_BYTES = 4 << 10
"""Bytes that Global keeps for one Local at most, beside all that follows."""
SESSIONS_PER_ROUTE_MAX = 6
"""Sessions that one connection may have opened. A process has at most three: a membership, a writer
and an observer; each may be replaced by a new one."""
WRITES_BYTES_MAX = 256 << 20
WRITES_BYTES_SHARE = 64 << 20
WRITES_BYTES_ASSURED = 16 << 10
"""Bytes of writes under way (their values, until the last key has an outcome), of pending
deletions, and of outcomes that are kept in case they are asked for again.
"""
OUTCOMES_MAX = 10_000
"""Outcomes of writes that are kept for one session until it has acknowledged them."""
WAITS_BYTES_MAX = 128 << 20
WAITS_BYTES_SHARE = 32 << 20
WAITS_BYTES_ASSURED = 16 << 10
"""Bytes of requests that wait until a key has a value."""
LOADS_MAX = 16_384
LOADS_BYTES_MAX = 256 << 20
LOADS_BYTES_SHARE = 64 << 20
LOADS_BYTES_ASSURED = 16 << 10
"""Requests that wait until an engine has loaded values, and their bytes with those of the values.
"""
LOAD_BYTES_MIN = LOADS_BYTES_MAX // LOADS_MAX
"""Bytes that such a request counts at least, so that no more than ``LOADS_MAX`` wait."""
HOLDER_BYTES_MAX = 512 << 20
"""Bytes of the record of which session may hold which key. Beyond it, values are not cacheable."""
LOG_BYTES_MAX = 64 << 20
"""Bytes of the invalidation log, whatever its length."""
REPEATED_MAX = LOG_LENGTH_DEFAULT
"""Invalidations that are sent to a session again within one lease. Beyond it, the session has to
drop its cache.
"""
UPLOADS_MAX = 256
UPLOADS_SHARE = 64
"""Uploads at one time, each with an open file: of all sessions, and of one."""
UPLOAD_BYTES_SHARE = 1 / 4
"""The part of the memory limit that the uploads of one session may reserve, if it has several."""
UPLOAD_STEP = 64 << 10
"""Bytes of an upload that have to arrive within ``stages.STAGE_IDLE`` seconds, or it is dropped."""

# What the processes of a host share
HOST_BUCKETS = 1 << 17
"""Words of the invalidation vector in the page of a host: 1 MiB."""
HOST_CACHE_DEFAULT = 256 << 20
HOST_CACHE_PART = 1 / 4
"""The part of the file system in memory that a host cache takes at most, unless a size is given."""
HOST_CACHE_MIN, HOST_CACHE_MAX = 1 << 20, 1 << 40
"""The smallest and the largest host cache. 0: the processes share a membership only."""

# Node
TIMEOUT_DEFAULT = 5.0
TIMEOUT_MIN, TIMEOUT_MAX = 0.001, 86_400.0
WAIT_MAX = 31_536_000.0
"""The longest time that a call may wait for a key or an event; None waits without a limit."""
HOST_VARIABLE = "DSTORE_HOST"
HOST_CHOICES = ("auto", "off", "require")
CACHE_BYTES_DEFAULT = 256 << 20
"""Bytes of the cache of a process that shares no host cache."""
WATCH_LIMIT_DEFAULT, WATCH_LIMIT_MAX = 10_000, 1 << 31
"""Events of one watch that are kept until they are taken: the default, and the most that can be
set. Beyond it the oldest are dropped.
"""

LABEL_MAX = 256
"""Characters of a label."""

# Keys and values
KEY_BYTES_MAX = 511
VALUE_LIMIT_DEFAULT = 4 << 30
LARGE_FROM_DEFAULT = 64 << 10
"""Size from which on values travel in chunks and are shared by the processes of a host."""
LARGE_FROM_MIN = 1 << 10
INLINE_BYTES_MAX = 1 << 20
"""The largest value that may travel within a message; also the largest ``large_from``."""
CONTENT_PREFIX = "b3:"
BYTES_MAX = 1 << 20
"""A bytes value up to this size is returned as ``bytes``, a larger one as a read-only
``memoryview``, so that one copy serves all processes of a host.
"""
DECODED_FACTOR, DECODED_FREE = 24, 64 << 20
"""A value of n bytes may take DECODED_FACTOR * n + DECODED_FREE bytes of memory when it is decoded.
Nodes neither store nor decode a value that would take more.
"""

TTL_MAX = 3_153_600_000.0
"""Seconds after which a key may expire at the latest, 100 years; None: it does not expire."""

# Messages
KEYS_PER_MESSAGE_MAX = 2_000
"""Keys or items in one message: with the longest keys it is no larger than one with values."""
BATCH_BYTES_MAX = INLINE_BYTES_MAX
"""Bytes of the items of one SET, without its envelope. The reply to a GET of many keys ends once
its values have this size.
"""
ITEM_BYTES_MAX = 640
"""Bytes that an item of a SET has at most beside its value: key, token, name of the codec. A value
of nearly INLINE_BYTES_MAX bytes travels alone, and has these on top.
"""
KEYS_PAGE_DEFAULT = 1_000
"""Keys that a Node asks for at a time when it lists them."""
CHUNK_BYTES = 1 << 20
"""Bytes of one chunk of a large value. Another request may have to wait behind one."""
CHUNK_BYTES_MAX = CHUNK_BYTES
"""The largest chunk that is accepted."""
CHUNKS_AHEAD = 8
"""Chunks of one transfer that are under way at a time."""
FRAME_BYTES_MAX = INLINE_BYTES_MAX + (64 << 10)
"""The largest frame that Global accepts. A connection that sends a larger one is cut: its peer is
not a Local.
"""


def share_of(whole: int) -> int:
    """Return how many of ``whole`` (Locals, connections) one address or identity may have."""
    return math.ceil(PEER_SHARE * whole)


def host_default() -> str:
    """Return whether a Node uses the membership of its host, if it is not told."""
    return os.environ.get(HOST_VARIABLE) or HOST_CHOICES[0]


def connect_default() -> str | None:
    """Return the connect file that a Node or the command line uses when none is given, if any."""
    return os.environ.get(CONNECT_VARIABLE) or None


def address_default() -> str:
    """Return the address that a Node or the command line uses when none is given."""
    return os.environ.get(ADDRESS_VARIABLE) or ADDRESS_DEFAULT
