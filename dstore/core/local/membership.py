"""What a hit reads: a membership, its entries, and the state that names the present membership.

These classes are the pure ones. Where :mod:`dstore._native` is there, its classes of the same names
take their place, with the same attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dstore.compiled import native
from dstore.protocol.messages import NO_SESSION, Key

LAPSED = 0.0
"""The end of a lease that has lapsed: no clock is before it."""
NS = 1e9
"""Nanoseconds of a second."""
LEASE_MAX = (1 << 64) - 1
"""The latest end of a lease, in nanoseconds."""


def lease_word(end: float) -> int:
    """Return the end of a lease, given in seconds, in nanoseconds; 0 stands for a lapsed one."""
    return LEASE_MAX if end * NS >= LEASE_MAX else round(end * NS) if end > 0 else 0


def private_lease() -> memoryview:
    """Return the word for the end of a lease that no other process looks at."""
    return memoryview(bytearray(8)).cast("Q")


class Entry:
    """One cached value. Only the owner of the cache changes an entry, and never its ``value``.

    ``value`` is the object that hits return, if one object can serve all of them; else it is the
    :class:`~dstore.protocol.messages.Stored`, which each hit decodes. ``seq`` is that of the reply
    which brought the value: invalidations up to it do not concern the entry. ``since`` is the
    lowest ``seq`` of the entries of this key that took each other's place without an invalidation
    of the key in between. ``bucket`` is the place of the key in the invalidation vector, if hits
    look there. ``size`` is in bytes of this process; ``shared`` is the token of a value in shared
    memory. A hit sets ``visited``. ``sound`` is set once the value has been decoded, so that it is
    checked only once. ``home`` is the membership under which it is stored in a cache that has an
    index. It is None before, and is None again before anything else of the entry is dropped: a hit
    that finds the entry in the index goes by that.
    """

    __slots__ = (
        "bucket", "home", "key", "newer", "older", "seq", "shared", "since", "size", "sound",
        "value", "visited",
    )  # fmt: skip

    def __init__(
        self,
        key: Key,
        value: object,
        seq: int,
        size: int,
        shared: bytes | None = None,
        bucket: int = 0,
    ) -> None:
        self.key = key
        self.value = value
        self.seq = self.since = seq
        self.size = size
        self.shared = shared
        self.bucket = bucket
        self.sound = False
        self.visited = 0
        self.home: Membership | None = None
        self.newer: Entry | None = None
        self.older: Entry | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.key!r} seq={self.seq} visited={self.visited}>"


class Membership:
    """The Local's side of one session. A new session is a new object, with entries of its own.

    A hit takes one membership, from which lease, entries and words come: the entries of one with
    the lease of another would be stale. ``session`` is 0 before it has begun and after it has
    ended. All invalidations up to ``applied`` have been applied. ``words`` is the invalidation
    vector that each hit looks at (a memoryview of the format ``Q``), or None where invalidations
    are applied to the entries themselves. ``lease`` is one word, with the end of the lease in
    nanoseconds; where several processes share the membership its owner alone writes it.
    """

    __slots__ = ("applied", "entries", "epoch", "lease", "session", "words")

    def __init__(
        self,
        entries: dict[Key, Entry],
        words: memoryview | None = None,
        lease: memoryview | None = None,
    ) -> None:
        self.epoch = 0
        self.session = NO_SESSION
        self.applied = 0
        self.entries = entries
        self.words = words
        self.lease = private_lease() if lease is None else lease

    @property
    def lease_end(self) -> float:
        """The end of the lease in seconds of the clock; 0 if there is none."""
        return float(self.lease[0]) / NS

    @lease_end.setter
    def lease_end(self, seconds: float) -> None:
        self.lease[0] = lease_word(seconds)

    def __repr__(self) -> str:
        return (
            f"<Membership epoch={self.epoch:x} joined={bool(self.session)} applied={self.applied} "
            f"lease_end={self.lease_end:.3f} entries={len(self.entries)}>"
        )


class Present:
    """The base of a state: it names the present ``membership``, for readers without a lock."""

    __slots__ = ("membership",)

    def __init__(self, membership: Membership) -> None:
        self.membership = membership


PureEntry = Entry
PureMembership = Membership
PurePresent = Present
if not TYPE_CHECKING and native is not None:
    Entry, Membership, Present = native.Entry, native.Membership, native.Present
