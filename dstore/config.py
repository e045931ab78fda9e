"""Every limit and default of dstore, by name. Times are seconds, sizes are bytes."""

from __future__ import annotations

import math
import os

ADDRESS_DEFAULT = "tcp://127.0.0.1:50051"
ADDRESS_VARIABLE = "DSTORE_GLOBAL"

# Global
LEASE_DEFAULT = 2.0
LEASE_MIN, LEASE_MAX = 0.05, 3600.0
LOG_LENGTH_DEFAULT = 16_384
LOG_LENGTH_MAX = 1 << 18
"""One answer to a SYNC can bring a Local so many deletions."""
MEMORY_LIMIT_DEFAULT = 4 << 30
SIZE_MAX = (1 << 62) - 1
"""The largest that a limit in bytes may be: as a size on the wire."""

CLIENTS_MAX_DEFAULT = 10_000
CLIENTS_MAX = 100_000
"""Locals that may be here at one time: the default, and the most that can be set."""

# What Locals can make Global hold beside values. Each session has a share; the first few bytes
# of each are assured, whatever others have taken.
PEER_SHARE = 3 / 4
"""The part of all Locals, and of all connections, that one address may have."""
SESSION_BYTES = 4 << 10
"""What Global keeps of one Local at most, beside all that follows."""
SESSIONS_PER_ROUTE_MAX = 4
"""Sessions that one connection may have opened. A Local has one, or for a moment two."""
WRITES_BYTES_MAX = 256 << 20
WRITES_BYTES_SHARE = 64 << 20
WRITES_BYTES_ASSURED = 16 << 10
"""Bytes of writes at work (their values, until the last has an outcome), of deletions that are
pending, and of outcomes that are kept in case they are asked for again.
"""
OUTCOMES_MAX = 10_000
"""Writes of one session whose outcomes it has not said to have seen."""
WAITS_BYTES_MAX = 128 << 20
WAITS_BYTES_SHARE = 32 << 20
WAITS_BYTES_ASSURED = 16 << 10
"""Bytes of requests that wait for a key to be bound."""
HOLDER_BYTES_MAX = 512 << 20
"""Bytes of the record of who may hold which key. Beyond that, values are not cacheable."""
LOG_BYTES_MAX = 64 << 20
"""Bytes of the deletion log, whatever its length."""
RETOLD_MAX = LOG_LENGTH_DEFAULT
"""Deletions that a session is told again within one lease; then it has to drop its cache."""
UPLOADS_MAX = 256
UPLOADS_SHARE = 64
"""Uploads at one time, each with a file that is open: of all sessions, and of one."""
UPLOAD_BYTES_SHARE = 1 / 4
"""The part of the memory limit that one session's uploads may reserve, if it has several."""
UPLOAD_STEP = 64 << 10
"""Bytes that have to come of an upload within its time, or it is dropped."""

# Node
TIMEOUT_DEFAULT = 5.0
TIMEOUT_MIN, TIMEOUT_MAX = 0.001, 86_400.0
WAIT_MAX = 31_536_000.0
"""The longest that one call may wait for a key or an event; without a limit it is None."""
CACHE_BYTES_DEFAULT = 256 << 20
WATCH_LIMIT_DEFAULT, WATCH_LIMIT_MAX = 10_000, 1 << 31
"""Events of one watch that are kept until they are taken: the default, and the most that can be
set. Beyond it the oldest are dropped.
"""

LABEL_MAX = 256

# Keys and values
KEY_BYTES_MAX = 511
VALUE_LIMIT_DEFAULT = 4 << 30
LARGE_FROM_DEFAULT = 64 << 10
"""Values of so many bytes travel in chunks and are shared by the processes of a host."""
LARGE_FROM_MIN = 1 << 10
INLINE_BYTES_MAX = 1 << 20
"""The most that a value may have that travels within a message."""
CONTENT_PREFIX = "b3:"
BYTES_MAX = 1 << 20
"""A bytes value up to this size comes back as ``bytes``, a larger one as a read-only
``memoryview``, so that one copy serves all processes of a host.
"""
DECODED_FACTOR, DECODED_FREE = 24, 64 << 20
"""A value of n bytes may take DECODED_FACTOR * n + DECODED_FREE bytes of memory when it is decoded:
what would take more is stored by no Node and decoded by none.
"""

# Messages
KEYS_PER_MESSAGE_MAX = 2_000
"""So that a message of the longest keys is no larger than one with values."""
BATCH_BYTES_MAX = INLINE_BYTES_MAX
"""A SET has no more bytes than these, beside its envelope. The reply to a many-request is closed
once its values have this many.
"""
ITEM_BYTES_MAX = 640
"""What an item of a SET takes at most beside the bytes of its value: key, token, name of the codec.
A value of nearly INLINE_BYTES_MAX bytes goes alone, and has these on top.
"""
KEYS_PAGE_DEFAULT = 1_000
CHUNK_BYTES = 1 << 20
"""A chunk of a large value: what another request may have to wait for."""
CHUNK_BYTES_MAX = CHUNK_BYTES
"""The largest that is accepted."""
CHUNKS_AHEAD = 8
"""Chunks of one transfer that are under way at a time."""
FRAME_BYTES_MAX = INLINE_BYTES_MAX + (64 << 10)
"""A connection that sends Global more in one frame is cut: it is not one of ours."""


def share_of(whole: int) -> int:
    """How many of something one address may have, so that it cannot take all."""
    return math.ceil(PEER_SHARE * whole)


def address_default() -> str:
    """The address that a Node or the command line uses when none is given."""
    return os.environ.get(ADDRESS_VARIABLE) or ADDRESS_DEFAULT
