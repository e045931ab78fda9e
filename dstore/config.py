"""Every limit and default of dstore, by name. Times are seconds, sizes are bytes."""

from __future__ import annotations

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

# Node
TIMEOUT_DEFAULT = 5.0
TIMEOUT_MAX = 86_400.0
CACHE_BYTES_DEFAULT = 256 << 20

LABEL_MAX = 256

# Keys and values
KEY_BYTES_MAX = 511
VALUE_LIMIT_DEFAULT = 4 << 30
LARGE_FROM_DEFAULT = 64 << 10
"""Values of so many bytes travel in chunks and are shared by the processes of a host."""
LARGE_FROM_MIN = 1 << 10
INLINE_BYTES_MAX = 8 << 20
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
KEYS_PER_MESSAGE_MAX = 10_000
BATCH_BYTES_MAX = INLINE_BYTES_MAX
"""A SET has no more bytes than these, beside its envelope. The reply to a many-request is closed
once its values have this many.
"""
ITEM_BYTES_MAX = 640
"""What an item of a SET takes at most beside the bytes of its value: key, token, name of the codec.
One that has nearly INLINE_BYTES_MAX of these goes alone, and has so many more.
"""
KEYS_PAGE_DEFAULT = 1_000
CHUNK_BYTES = 1 << 20
"""A chunk of a large value: what another request may have to wait for."""
CHUNK_BYTES_MAX = 4 << 20
"""The largest that is accepted."""
CHUNKS_AHEAD = 8
"""Chunks of one transfer that are under way at a time."""


def address_default() -> str:
    """The address that a Node or the command line uses when none is given."""
    return os.environ.get(ADDRESS_VARIABLE) or ADDRESS_DEFAULT
