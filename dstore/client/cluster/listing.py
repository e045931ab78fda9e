"""Listing keys across members: each key once and in the order of bytes, wherever partitions move.

Pure. Each cursor reads the keys of some partitions, at the member that owns them. When one of them
moves, its cursor is split: each part goes on, at the new owner, after the last key that was read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from dstore.protocol.keys import in_order
from dstore.protocol.messages import Key
from dstore.protocol.partitions import PARTITIONS

Page: TypeAlias = tuple[Sequence[int], Sequence[Key], Key]
"""Partitions, keys that come next in them, and after which key there are more; empty: no more."""


@dataclass(eq=False)
class Cursor:
    """The keys of some partitions: ``keys`` that have been read, and after which more follow."""

    numbers: Sequence[int]
    after: Key = ""
    keys: deque[Key] = field(default_factory=deque)
    over: bool = False

    @property
    def empty(self) -> bool:
        """Whether a page has to be read before a key that comes after others can be given out."""
        return not self.keys and not self.over


class Listing:
    """The keys of all partitions, after one. While a cursor is ``empty``, pages have to be read."""

    def __init__(self, after: Key = "") -> None:
        self._cursors = [Cursor(range(PARTITIONS), after)]

    @property
    def empty(self) -> list[Cursor]:
        return [each for each in self._cursors if each.empty]

    @property
    def over(self) -> bool:
        """Whether all keys have been taken."""
        return not self._cursors

    def read(self, cursor: Cursor, pages: Iterable[Page]) -> None:
        """Take the next pages of an empty cursor, whose partitions together are those of it."""
        self._cursors.remove(cursor)
        for numbers, keys, after in pages:
            self._cursors.append(Cursor(numbers, after, deque(keys), not after))

    def take(self) -> list[Key]:
        """Return the keys that come next in order: none while a cursor is empty."""
        taken: list[Key] = []
        while self._cursors and not self.empty:
            unread = [each.keys[-1] for each in self._cursors if each.keys and not each.over]
            # Whatever has not been read comes after the last key of its page.
            last = min(map(in_order, unread), default=None)
            found: list[Key] = []
            for cursor in self._cursors:
                while cursor.keys and (last is None or in_order(cursor.keys[0]) <= last):
                    found.append(cursor.keys.popleft())
            taken += sorted(found, key=in_order) if len(self._cursors) > 1 else found
            self._cursors = [each for each in self._cursors if each.keys or not each.over]
        return taken
