"""What the processes of a host share: the page of its membership, and the host cache.

The owner of the membership (Global on its own host, ``dstore host`` elsewhere) writes the page: the
end of the lease, and the invalidation vector. Every process of the host validates its own entries
by it, and the values of the host cache as well, which all of them fill.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeAlias

from dstore.core.local.vector import Vector
from dstore.protocol.messages import Key

SEEN_SLOTS, SEEN_AGE = 1 << 16, 12_288
"""Slots by which a process remembers which keys it has read from the host cache, and keys after
which it begins to forget the older ones. So at most three of eight keys are taken for one that was
read.
"""
SEEN_HEAD, SEEN_FIRST, SEEN_LAST = 2, 2, (1 << 16) - 1


class Record(NamedTuple):
    """One value of the host cache; ``seq`` is that of the reply which brought it."""

    seq: int
    token: bytes
    codec: str
    body: bytes


Put: TypeAlias = tuple[Key, int, int, bytes, str, bytes]
"""A value to be put into the host cache: key, its hash, seq, token, codec, body."""


class SharedPage(Protocol):
    """A page that its owner keeps up to date, and the host cache of the same session.

    ``lease_word`` is one word, as in :class:`~dstore.core.local.membership.Membership`; the words
    of ``vector`` are those that hits look at. ``lease`` is in seconds, ``cluster`` is the id of the
    cluster of its Global.
    """

    epoch: int
    session: int
    cluster: bytes
    lease: float
    value_limit: int
    large_from: int
    vector: Vector
    lease_word: memoryview
    capacity: int
    """Bytes of the host cache; 0 if there is none."""

    def now(self) -> float:
        """Return the present time. A hit asks for it last."""

    def used(self) -> int:
        """Return how many bytes the host cache holds."""

    def find(self, key: Key, hashed: int) -> Record | None:
        """Return what the host cache has for a key. It may be out of date."""

    def put(self, value: Put) -> bool:
        """Put a value into the host cache. Returns whether it is there."""

    def put_many(self, values: Iterable[Put]) -> int:
        """Put several values, as :meth:`put` does. Returns how many were put."""


class Seen:
    """Which keys of the host cache were read lately, by their hashes; it forgets, and may err.

    A value is kept in the process from its second read on, so that values that are read once take
    no memory in each process. This is the doorkeeper of TinyLFU (Einziger et al., "TinyLFU", ACM
    TOS 2017), with ages in the place of a reset: a slot has the age in which a key with its hash
    was last read; an age ends after ``SEEN_AGE`` such keys, and the one before it still counts.

    ``slots`` begins with the present age, and how many keys it has. The compiled reader changes it
    in the same way.
    """

    __slots__ = ("slots",)

    def __init__(self) -> None:
        self.slots = memoryview(bytearray(2 * (SEEN_HEAD + SEEN_SLOTS))).cast("H")
        self.slots[0] = SEEN_FIRST

    def again(self, hashed: int) -> bool:
        """Note a read. Returns whether the key was read before."""
        return seen_again(self.slots, hashed)


def seen_again(slots: memoryview, hashed: int) -> bool:
    """Note the read of a key in the slots of :class:`Seen`. Returns whether it was read before."""
    place = SEEN_HEAD + (hashed >> 16) % SEEN_SLOTS
    age, found = slots[0], slots[place]
    if found == age:
        return True
    slots[place] = age
    if found == age - 1:
        return True
    slots[1] += 1
    if slots[1] == SEEN_AGE:
        if age == SEEN_LAST:
            age = SEEN_FIRST
            slots[SEEN_HEAD:] = memoryview(bytearray(2 * SEEN_SLOTS)).cast("H")
        slots[0], slots[1] = age + 1, 0
    return False


NO_KEYS_SEEN = Seen()
"""For a Local without a host cache, which does not use it."""
