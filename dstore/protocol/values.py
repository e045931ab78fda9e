"""The values that messages carry: keys, stored values and outcomes.

A key is a ``str`` throughout. Bytes that are not UTF-8 become lone surrogates (PEP 383), so that
text and bytes share one name space: ``"a"`` and ``b"a"`` are the same key.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeAlias

Key: TypeAlias = str
Buffer: TypeAlias = bytes | memoryview
Route: TypeAlias = bytes
"""How Global reaches one DEALER: the identity that its ROUTER socket gave to the connection."""


class Large(NamedTuple):
    """Stands for the bytes of a large value, which travel in chunks: their number and digest."""

    size: int
    digest: bytes


Body: TypeAlias = bytes | memoryview | Large
"""The bytes of a value (read-only), or the :class:`Large` that stands for them."""


class Stored(NamedTuple):
    """One value as Global keeps it: opaque bytes and the name of the codec that decodes them.

    ``token`` is 16 random bytes that name the write that bound the value.
    """

    token: bytes
    codec: str
    body: Body

    @property
    def size(self) -> int:
        """The length of the value in bytes."""
        body = self.body
        return body.size if type(body) is Large else len(body)

    @property
    def inline(self) -> int:
        """How many bytes of the value travel within a message."""
        return 0 if type(self.body) is Large else len(self.body)


class Found(NamedTuple):
    """A value in a reply. ``seq`` is the number of the newest invalidation when it was read."""

    seq: int
    cacheable: bool
    stored: Stored


class SetStatus(IntEnum):
    """How one item of a SET ended."""

    STORED = 0
    OCCUPIED = 1
    REPLACED = 2
    FULL = 3
    MISMATCH = 4  # the key is a content address, and not that of the value
    TOO_LARGE = 5
    FAILED = 6  # the engine raised
    ABSENT = 7  # the bytes of a large value are not here: upload them, and ask again


class SetResult(NamedTuple):
    """The outcome of one item of a SET.

    ``cacheable`` says whether the writer may cache the value that it has written. ``found`` is the
    value that occupies the key. ``confirmed`` and ``expired`` count the holders of a value that was
    replaced.
    """

    status: SetStatus
    seq: int
    cacheable: bool = False
    found: Found | None = None
    confirmed: int = 0
    expired: int = 0


class DelStatus(IntEnum):
    """How one key of a DEL ended."""

    DELETED = 0
    MISSING = 1
    PENDING = 2  # ``wait=False``: the deletion has started, and holders have yet to acknowledge
    FAILED = 3  # the engine raised


class DelResult(NamedTuple):
    """The outcome of one key of a DEL: how many holders confirmed, expired, or are awaited."""

    status: DelStatus
    seq: int
    confirmed: int = 0
    expired: int = 0
    pending: int = 0


class Refusal(IntEnum):
    """Why Global did not execute a request."""

    BAD_MESSAGE = 0
    OTHER_VERSION = 1
    OTHER_EPOCH = 2
    UNKNOWN_SESSION = 3
    STALE_WRITE = 4  # its sender has said that it no longer waits for the outcome
    CLOSING = 5
    BUSY = 6
    GONE = 7  # the large value is not here, or not any more
    DAMAGED = 8  # the bytes of an upload do not have the digest that was announced
    FULL = 9
    TOO_LARGE = 10
